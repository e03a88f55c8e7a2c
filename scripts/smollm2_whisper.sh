#!/bin/sh
# Teaches SmolLM2-135M to write down and to go on with what Whisper tiny.en hears: conf/smollm2_whisper.yaml, corpus included.
#
#   sh scripts/smollm2_whisper.sh LIBRILIGHT OUT [OPTION OF FIT]...
#
# LIBRILIGHT is a corpus in Libri-Light's layout, with Libriheavy's cuts libriheavy_cuts_small.jsonl.gz; OUT the folder for
# the corpus that is made. LLM and WHISPER name folders instead of hub ids, PYTHON the interpreter. Needs flite and espeak-ng
# (Debian packages) and soxr (pip). What it learned is in the end in runs/smollm2_whisper/version_N/checkpoints/last.ckpt.
set -eu
librilight=$(realpath "$1") out=$(mkdir -p "$2" && realpath "$2")
shift 2
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} llm=${LLM:-HuggingFaceTB/SmolLM2-135M-Instruct} whisper=${WHISPER:-openai/whisper-tiny.en}

corpus() { "$python" scripts/make_transcription_corpus.py "$@"; }

corpus real --root "$librilight" --recognizer "$whisper" --out "$out"
corpus synthetic --llm "$llm" --lines 4300 --voices 1 --out "$out"
corpus questions --llm "$llm" --count 500 --voices 2 --out "$out"
corpus join --out "$out"
"$python" -m lit_spectron fit --config conf/smollm2_whisper.yaml --data.root "$out" --model.llm.init_args.source "$llm" \
    --model.llm.init_args.attention eager --model.encoder.init_args.source "$whisper" "$@"
