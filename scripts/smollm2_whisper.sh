#!/bin/sh
# Teaches SmolLM2-135M to hear by Whisper tiny.en: a few words first, then many, then fluent speech, real and synthetic.
#
#   sh scripts/smollm2_whisper.sh LIBRILIGHT OUT
#
# LIBRILIGHT is a corpus in Libri-Light's layout, with Libriheavy's cuts libriheavy_cuts_small.jsonl.gz; OUT the folder for
# the corpora that are made. LLM and WHISPER name folders instead of hub ids, PYTHON the interpreter, STEPS the end of
# training. Needs flite and espeak-ng (Debian packages) and soxr (pip). What it learned is in the end in
# runs/smollm2_fluent/version_N/checkpoints/last.ckpt.
set -eu
librilight=$(realpath "$1") out=$(mkdir -p "$2" && realpath "$2")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} llm=${LLM:-HuggingFaceTB/SmolLM2-135M-Instruct} whisper=${WHISPER:-openai/whisper-tiny.en}
steps=${STEPS:-1850}

corpus() { "$python" scripts/make_transcription_corpus.py "$@"; }

# lesson NAME LAST_STEP OPTION...
lesson() {
    name=smollm2_$1 last=$2
    shift 2
    "$python" -m lit_spectron fit --config conf/smollm2_whisper.yaml --trainer.logger.init_args.name "$name" \
        --model.llm.init_args.source "$llm" --model.llm.init_args.attention eager --model.encoder.init_args.source "$whisper" \
        --model.optimizer.total_steps "$steps" --trainer.max_steps "$last" "$@"
    checkpoint=$(ls -td "runs/$name"/version_* | head -n 1)/checkpoints/last.ckpt
}

corpus synthetic --llm "$llm" --lines 7000 --voices 1 --random_words 500 --out "$out/words" \
    --prompt_seconds 1.2 --continuation_seconds 0.3 0.8
corpus join --repeat_real 0 --out "$out/words"
corpus real --root "$librilight" --recognizer "$whisper" --out "$out/fluent"
corpus synthetic --llm "$llm" --lines 8500 --voices 1 --out "$out/fluent"
corpus join --out "$out/fluent"
ln -sfn "$librilight" "$out/words/real"
cp "$out/fluent/real_validation.jsonl.gz" "$out/words"

# 28 words: the LLM finds out that the prefix is to be read from left to right.
lesson sequences 100 --data.root data/sequences --data.train_cuts libriheavy_cuts_train.jsonl.gz \
    --data.val_cuts libriheavy_cuts_validation.jsonl.gz --data.test_cuts libriheavy_cuts_test.jsonl.gz \
    --data.lower_case true --data.text_index 1 --data.prompt_seconds 1.5
# 500 words in no order: they can't be guessed.
lesson words 600 --ckpt_path "$checkpoint" --data.root "$out/words" --data.prompt_seconds 1.2 \
    --data.min_continuation_seconds 0.3
# Speech as it is spoken; masked, since there is little of it.
augment='{class_path: lit_spectron.audio.SpecAugment, init_args: {frequency_mask_bins: 12, time_masks: 3}}'
lesson fluent "$steps" --ckpt_path "$checkpoint" --data.root "$out/fluent" --model.encoder.init_args.spec_augment "$augment"
