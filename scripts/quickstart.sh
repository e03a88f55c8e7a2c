#!/bin/sh
# Trains the embedded default, tests it and continues held-out prompts. PYTHON names the interpreter.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -m lit_spectron fit --config conf/quickstart.yaml
run=$(ls -td runs/quickstart/version_* | head -n 1)
"$python" -m lit_spectron test --config conf/quickstart.yaml --ckpt_path "$run/checkpoints/last.ckpt"
"$python" -m lit_spectron generate --ckpt "$run/checkpoints/last.ckpt" --out "$run/samples" data/sequences/prompts
cat <<END

Listen:  $run/samples/*.wav         (the prompts are in data/sequences/prompts)
Look:    $run/samples/*.png         and: ${python%python*}tensorboard --logdir runs
Read:    $run/report.md             every metric and every sample of the test split
END
