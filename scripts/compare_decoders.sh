#!/bin/sh
# Trains each small spectrogram decoder on the embedded corpus with three seeds, and listens to what it says.
#
#   sh scripts/compare_decoders.sh RECOGNIZER
#
# RECOGNIZER is a Whisper model, hub id or folder. STEPS says how long each is trained, PYTHON names the interpreter. One row
# a run is printed and kept in runs/decoders_NAME_SEED/row.md; runs that have one are not done again.
set -eu
recognizer=$1
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} steps=${STEPS:-2200}
judges="[{class_path: callbacks.GenerationHealth}, {class_path: callbacks.WordErrorRate, init_args: {recognizer:
    {class_path: lit_spectron.evaluators.WhisperRecognizer, init_args: {source: '$recognizer'}}}}]"
echo "| decoder | seed | wer_speech | wer_text | stop_rate | silence_ratio | real_time_factor | seconds a step |"
echo "|---|---|---|---|---|---|---|---|"
for seed in 0 1 2; do
    for decoder in mlp tacotron melle flow_matching; do
        run=runs/decoders_${decoder}_$seed
        if [ ! -f "$run/row.md" ]; then
            rm -rf "$run"
            mkdir -p "$run"
            "$python" -m lit_spectron fit --config conf/quickstart.yaml --seed_everything "$seed" \
                --model.decoder "conf/decoder/${decoder}_tiny.yaml" --trainer.max_steps "$steps" \
                --trainer.val_check_interval "$steps" --trainer.profiler simple \
                --trainer.logger.init_args.name "${run#runs/}" > "$run/fit.log" 2>&1
            "$python" -m lit_spectron test --config conf/quickstart.yaml --config conf/eval/sequences.yaml \
                --model.decoder "conf/decoder/${decoder}_tiny.yaml" --trainer.callbacks "$judges" \
                --ckpt_path "$run/version_0/checkpoints/last.ckpt" --trainer.logger.init_args.name "${run#runs/}" \
                > "$run/test.log" 2>&1
            # The profiler's row: | run_training_batch | mean seconds | calls | ...
            seconds=$(awk -F'|' '/run_training_batch/ {print $3 + 0; exit}' "$run/fit.log")
            "$python" - "$run"/version_0/report.json "| $decoder | $seed |" "$seconds" > "$run/part.md" <<'ROW'
import json, sys
report = json.load(open(sys.argv[1]))
speech = sum(sample["seconds"] for sample in report["samples"].values())
names = ("wer_speech", "wer_text", "stop_rate", "silence_ratio")
figures = [report["metrics"][f"test/{name}"] for name in names] + [report["seconds"]["generation"] / speech]
print(sys.argv[2], *("none |" if figure is None else f"{figure:.3f} |" for figure in figures), f"{float(sys.argv[3]):.3f} |")
ROW
            mv "$run/part.md" "$run/row.md"
        fi
        cat "$run/row.md"
    done
done
