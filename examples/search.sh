#!/usr/bin/env bash
# Search learning rate and batch size of a recipe, register the winner, make it live.
# Arguments are settings of the recipe and options of `bertha tune`, as --trials 32.
set -euo pipefail
run=${RUN:-runs/search}

bertha tune "${RECIPE:-reviews.yaml}" --run "$run" --register searched "$@"
echo "report: $run/report.html; the live page of a search: bertha tune dashboard $run"
bertha deploy searched@best
bertha list
