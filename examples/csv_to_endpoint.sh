#!/usr/bin/env bash
# Train on your own CSV, serve the result, ask it once: csv_to_endpoint.sh reviews.csv body stars
# More arguments are settings of the recipe, as batch.global_size=64.
set -euo pipefail
csv=$1 text=$2 label=$3
shift 3
run=runs/$(basename "${csv%.*}")

bertha train csv.yaml data.source="$csv" data.text="$text" data.label="$label" "$@" --run "$run"

bertha serve "$run/bundle" --port "${PORT:-8000}" &
server=$!
trap 'kill $server; wait $server || true' EXIT
until curl -sf "localhost:${PORT:-8000}/health" >/dev/null; do
  kill -0 $server
  sleep 1
done
curl -s "localhost:${PORT:-8000}/predict" -H 'Content-Type: application/json' \
  -d '{"inputs": "A wonderful film."}'
echo
