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
            "$python" scripts/score_speech.py --ckpt "$run/version_0/checkpoints/last.ckpt" \
                --recognizer "$recognizer" --rows generated > "$run/score.md" 2> "$run/score.log"
            # The profiler's row: | run_training_batch | mean seconds | calls | ...
            seconds=$(awk -F'|' '/run_training_batch/ {print $3 + 0; exit}' "$run/fit.log")
            heard=$(awk -F'|' '$3 ~ /all/ {print $5 + 0}' "$run/score.md")
            # wer_text 0.000, stop_rate 1.000, silence_ratio 0.220, real_time_factor 0.055 in batches of 20
            others=$(awk '/^wer_text/ {gsub(",", ""); print $2 " | " $4 " | " $6 " | " $8}' "$run/score.md")
            echo "| $decoder | $seed | $heard | $others | $seconds |" > "$run/part.md"
            mv "$run/part.md" "$run/row.md"
        fi
        cat "$run/row.md"
    done
done
