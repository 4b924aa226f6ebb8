#!/usr/bin/env bash
# Prints the fenced block of README.md that follows the line <!-- NAME -->, so that what readers copy is what is run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=${1:?which block: scripts/readme-block.sh NAME}
[[ -e README.md ]] || { echo "there is no README.md" >&2; exit 1; }
block=$(awk -v marker="<!-- $name -->" '
    $0 == marker { found = 1; next }
    found && /^```/ { if (inside) exit; inside = 1; next }
    inside { print }
' README.md)
[[ -n $block ]] || { echo "README.md has no fenced block after <!-- $name -->" >&2; exit 1; }
printf '%s\n' "$block"
