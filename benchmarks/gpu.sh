#!/bin/sh
# Check and measure what only a GPU can show, part by part: benchmarks/gpu.sh [FOLDER]
# Needs torch, triton, transformers, accelerate, numba and pytest; no network, no data
# sets, no SparseML. Each part is a process of its own with a time of its own, and writes
# its JSON as it goes: a part that fails or runs out of time loses nothing of the others.
# PYTHON=...   the interpreter, python3 by default
# DEVICE=cpu   tries the script where there is no GPU, on models of a toy's size
# PARTS="..."  some of the parts
# TIMES=4      that many times the seconds, on a slow or busy machine
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-runs/gpu}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false OBERT_HOST=own
failed=0
# The most telling first; the seconds add up to less than 8 minutes.
for part in machine:15 event:110 kernels:120 masks:40 precision:60 resume:40 nccl:30 \
    two_four:50; do
    name=${part%:*}
    case " ${PARTS:-$name} " in *" $name "*) ;; *) continue ;; esac
    started=$(date +%s)
    timeout $((${part#*:} * ${TIMES:-1})) "$python" benchmarks/gpu.py "$name" \
        --device "$device" --out "$out/$name.json" >"$out/$name.log" 2>&1
    code=$?
    echo "$name: exit $code, $(($(date +%s) - started)) s"
    [ "$code" = 0 ] || failed=1
    [ "$code" = 0 ] || tail -n 5 "$out/$name.log"
done
exit $failed
