#!/bin/sh
# Run the quickstart and the quick tests in a fresh place: tools/try_python.sh [VERSION]
# The place is a Debian root made with debootstrap, as root: Debian 13 for Python 3.13,
# the default, or forky for 3.14. PYTHON=/path/to/python takes that interpreter instead,
# and a folder with nothing but a clone. What is committed is tried.
# TARGETS="quickstart test"   the make targets to run
# MIRROR=...                  Debian's mirror, deb.debian.org by default
# OBERT_SHARED_DATA=PATH      data sets for the tests that need them, with PATH in BIND
# BIND="PATH ..."             files and folders that the root sees as they are here, such
#                             as pip's configuration and wheels
# PLACE=PATH                  a folder that is kept, and taken again where it is there
set -eu
checkout=$(cd "$(dirname "$0")/.." && pwd)
targets=${TARGETS:-quickstart test}
python=${PYTHON:-}
version=${1:-3.13}
case $version in
    3.13) suite=trixie ;;
    3.14) suite=forky ;;
    *)
        echo "error: version=$version; expected 3.13 or 3.14, or PYTHON=/path/to/python" >&2
        exit 2
        ;;
esac

if [ -n "${PLACE:-}" ]; then
    mkdir -p "$PLACE"
    fresh=$(cd "$PLACE" && pwd)
else
    fresh=$(mktemp -d)
    trap 'rm -rf --one-file-system "$fresh"' EXIT
    trap 'exit 1' INT TERM
fi

if [ -n "$(git -C "$checkout" status --porcelain)" ]; then
    echo "==> What is not committed is left out"
fi
if [ -n "$python" ]; then
    place=$fresh
    where="a clone"
else
    place=$fresh/$suite
    where="Debian $suite"
fi
if [ -z "$python" ] && [ ! -e "$place/srv/obert_modifiers" ]; then
    # The script of sid serves all: an older debootstrap has none by forky's name.
    echo "==> Making a root of Debian $suite"
    debootstrap --variant=minbase --include=ca-certificates,git,make,python3,python3-venv \
        "$suite" "$place" "${MIRROR:-http://deb.debian.org/debian}" sid \
        >"$fresh/debootstrap.log" || {
        tail -n 5 "$fresh/debootstrap.log" >&2
        exit 1
    }
    cp /etc/resolv.conf /etc/hosts "$place/etc/"
fi
mkdir -p "$place/srv"
rm -rf "$place/srv/obert_modifiers"
git clone -q --no-hardlinks "$checkout" "$place/srv/obert_modifiers"

# Settings of pip, of a proxy and of the tests' data go in; all else is the place's own.
settings=$(env | grep -E '^(PIP_|OBERT_|https?_proxy=|no_proxy=|HTTPS?_PROXY=|NO_PROXY=)' || true)

inside() {
    if [ -n "$python" ]; then
        # shellcheck disable=SC2086  # one word for each setting
        (cd "$place/srv/obert_modifiers" &&
            env -i PATH="$PATH" HOME="$fresh" LANG=C.UTF-8 $settings "$@")
        return
    fi
    # Mounts in a namespace of their own: they end with the command.
    # shellcheck disable=SC2016,SC2086
    unshare --mount sh -euc '
        place=$1 binds=$2
        shift 2
        mount -t proc proc "$place/proc"
        mount --rbind /dev "$place/dev"
        for path in $binds; do
            if [ -d "$path" ]; then
                mkdir -p "$place$path"
            else
                mkdir -p "$place$(dirname "$path")"
                [ -e "$place$path" ] || : >"$place$path"
            fi
            mount --bind "$path" "$place$path"
        done
        exec chroot "$place" env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/root \
            LANG=C.UTF-8 "$@"
    ' sh "$place" "${BIND:-}" $settings \
        sh -c 'cd /srv/obert_modifiers && exec "$@"' sh "$@"
}

found=$(inside "${python:-python3}" -c 'import platform; print(platform.python_version())')
report="==> $where, Python $found, $(git -C "$checkout" log -1 --format='commit %h')"
echo "$report"
status=0
for target in $targets; do
    begin=$(date +%s)
    result=passed
    inside make "$target" PYTHON="${python:-python3}" || {
        result=failed
        status=1
    }
    report="$report
    make $target: $result in $(($(date +%s) - begin)) s"
done
echo "$report"
exit $status
