#!/bin/sh
# Make or reuse a virtual environment: tools/venv.sh FOLDER full|core|sparseml-cli
# full: the package (editable) with everything that users, tests and linters need.
# core: torch, numpy, numba, triton and pytest alone, to test kernels and core.
# sparseml-cli: the package (editable) with the transformers of SparseML's own scripts.
# PYTHON=... in the environment picks the interpreter. From Python 3.12 on, `full` takes
# sparseml without what it asks for (onnx<1.15 has no wheels there).
set -eu
venv=$1
kind=$2
case $kind in
    full | core) newest=13 ;;
    sparseml-cli) newest=11 ;;
    *)
        echo "error: kind=$kind; expected full, core or sparseml-cli" >&2
        exit 2
        ;;
esac
supported="import sys, venv, ensurepip
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))"

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.10 python3}; do
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
        echo "error: no supported Python among: ${PYTHON:-python3.11 python3.10 python3}"
        for candidate in ${PYTHON:-python3.11 python3.10 python3}; do
            if command -v "$candidate" >/dev/null; then
                echo "  $candidate: $("$candidate" --version 2>&1 | head -n 1)"
            else
                echo "  $candidate: not found"
            fi
        done
        echo "Python 3.10 and 3.11 work, with their venv module: transformers 5 needs 3.10,"
        echo "and sparseml 1.8.0 needs onnx<1.15, which has no wheels for 3.12 and later"
        echo "(kind $kind: up to 3.$newest; docs/sparseml_cli.md says what works there)."
        echo "Install one of them, or name it: make PYTHON=/path/to/python3.11"
    } >&2
    exit 1
fi

constraints=constraints.txt
case $kind-$("$python" -c 'import sys; print(sys.version_info[1])') in
    sparseml-cli-*) constraints=constraints-sparseml-cli.txt ;;
    *-1[2-9]) constraints=constraints-python3.12.txt ;;
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
        install numpy numba pytest 'triton; platform_system == "Linux"'
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
if [ "$constraints" = constraints-python3.12.txt ] && [ "$kind" = full ]; then
    install --no-deps --ignore-requires-python sparseml sparsezoo
elif [ "$kind" != core ]; then
    "$venv/bin/python" -m pip check --disable-pip-version-check
fi
echo "$stamp" >"$venv/.stamp"
echo "==> $venv is ready"
