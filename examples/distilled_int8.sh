#!/usr/bin/env bash
# Teach a student of half the layers, and let `build` choose among it and the teacher's engines.
# Arguments are settings of both recipes, as stopping.epochs=1.
set -euo pipefail
runs=${RUNS:-runs}

bertha train reviews.yaml "$@" --run "$runs/teacher"
bertha train distill.yaml distillation.teacher="$runs/teacher/bundle" "$@" --run "$runs/student"
bertha build "$runs/teacher/bundle" --student "$runs/student/bundle"
bertha predict "$runs/teacher/bundle" "A warm, funny and beautifully acted film."
