#!/bin/sh
# Make or reuse a virtual environment: tools/venv.sh FOLDER full|core|sparseml-cli
# full: the package (editable) with everything that users, tests and linters need.
# core: torch, numpy, numba, triton, pytest and its xdist, to test kernels and core.
# sparseml-cli: the package (editable) with the transformers of SparseML's own scripts.
# PYTHON=... in the environment picks the interpreter; else the first supported Python
# of the machine is taken, 3.11 before the others, since SparseML installs there alone.
set -eu
venv=$1
kind=$2
candidates=${PYTHON:-python3.11 python3.13 python3.12 python3.14 python3}
case $kind in
    full | core) newest=14 ;;
    sparseml-cli) newest=11 ;;
    *)
        echo "error: kind=$kind; expected full, core or sparseml-cli" >&2
        exit 2
        ;;
esac
supported="import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))"

find_python() {
    for candidate in $candidates; do
        # A version manager's shim can exist and yet fail: run it.
        if "$candidate" -c "$supported" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

python=$(find_python)
if [ -z "$python" ]; then
    {
        echo "error: no supported Python among: $candidates"
        for candidate in $candidates; do
            if command -v "$candidate" >/dev/null; then
                echo "  $candidate: $("$candidate" --version 2>&1 | head -n 1)"
            else
                echo "  $candidate: not found"
            fi
        done
        if [ "$kind" = sparseml-cli ]; then
            echo "SparseML's own scripts run on Python 3.11, with its venv module:"
            echo "sparseml 1.8.0 needs onnx<1.15, which has no wheels for later ones."
        else
            echo "Python 3.11 to 3.14 work, with their venv module."
        fi
        echo "Install it, or name it: make PYTHON=/path/to/python3.$newest"
    } >&2
    exit 1
fi

constraints=constraints-python3.13.txt
case $kind-$("$python" -c 'import sys; print(sys.version_info[1])') in
    sparseml-cli-*) constraints=constraints-sparseml-cli.txt ;;
    *-11) constraints=constraints.txt ;;
esac
version=$("$python" -c 'import platform; print(platform.python_version())')
stamp="$kind $version $(cat setup.cfg setup.py pyproject.toml $constraints "$0" | cksum)"
if [ -f "$venv/.stamp" ] && [ "$(cat "$venv/.stamp")" = "$stamp" ] &&
    "$venv/bin/python" -c '' 2>/dev/null; then
    echo "==> $venv is up to date (Python $version)"
    exit 0
fi

current=$("$venv/bin/python" -c 'import platform; print(platform.python_version())' \
    2>/dev/null) || current=
if [ "$current" = "$version" ]; then
    echo "==> Updating $venv (Python $version)"
else
    echo "==> Making $venv with $python (Python $version)"
    "$python" -m venv --clear "$venv"
fi
rm -f "$venv/.stamp"

install() {
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
        -c "$constraints" "$@"
}

# First and alone: resolved among the rest, an unpinned torch brings CUDA's libraries.
torch=$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' "$constraints")
echo "==> Installing $torch (its default Linux build is several GB; for a CPU build"
echo "    point pip's index-url or find-links at one)"
install "$torch"
case $kind in
    core)
        echo "==> Installing numpy, numba, triton and pytest, without sparseml and"
        echo "    transformers"
        install numpy numba pytest pytest-xdist 'triton; platform_system == "Linux"'
        ;;
    sparseml-cli)
        echo "==> Installing obert_modifiers (editable) and SparseML's transformers,"
        echo "    1 to 5 minutes"
        install -e '.[sparseml-cli]' pytest onnxruntime
        ;;
    *)
        echo "==> Installing obert_modifiers (editable) and what it needs, 1 to 5 minutes"
        install -e '.[demo,test,dev]'
        ;;
esac
if [ "$kind" != core ]; then
    "$venv/bin/python" -m pip check --disable-pip-version-check
fi
echo "$stamp" >"$venv/.stamp"
echo "==> $venv is ready"
