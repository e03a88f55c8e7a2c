from lit_spectron.cli import main

main()
