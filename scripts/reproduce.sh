#!/usr/bin/env bash
# Runs every committed study again and says whether its table comes out: scripts/reproduce.sh [FOLDER] [STUDY ...]
# Goes on where it was if it is stopped. On 2 CPU cores each study takes what results/STUDY/appendix.md says, halved by --jobs 2.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-reproduced}"
shift || true
python="${PYTHON:-.venv/bin/python}"
missed=0
studies=("$@")
if [ ${#studies[@]} -eq 0 ]; then
  for file in results/*/study.json; do studies+=("$(basename "$(dirname "$file")")"); done
fi
for name in "${studies[@]}"; do
  "$python" -m vlmpeft sweep "$name.yaml" --out "$out/$name" --jobs "${JOBS:-2}"
  "$python" scripts/reproduced.py "results/$name" "$out/$name" || missed=$?
done
exit "$missed"
