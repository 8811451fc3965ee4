#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes a machine with Debian 12, Python 3.11, git and make ready: distribution packages, .venv, Go tools.
#
#     tests/rig/setup.sh [TOOL…]       TOOL as in tests/rig/gotools.py; without any, what the demo needs
#
# Each step is skipped when its result is there and its inputs have not changed since.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*"; }

fail() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# 3.11 first: the locked dependencies were resolved for it.
find_python() {
	local candidate
	for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			command -v "$candidate"
			return
		fi
	done
	fail "no Python 3.11 or newer on PATH; as root: apt-get install -y python3"
}

# Prints a hash of the files and words given; the checkout's path counts, since a virtual environment knows its own.
fingerprint() {
	local word
	{
		printf '%s\n' "$PWD"
		for word in "$@"; do
			if [[ -f $word ]]; then sha256sum <"$word"; else printf '%s\n' "$word"; fi
		done
	} | sha256sum | cut -c1-16
}

# step STAMP INPUTS TITLE COMMAND…: runs the command unless the stamp says it was done with the same inputs.
step() {
	local stamp=.venv/$1 inputs=$2 title=$3 log=$cache/setup.log started=$SECONDS
	shift 3
	if [[ -f $stamp && $(<"$stamp") == "$inputs" ]]; then return; fi
	say "$title"
	if ! "$@" >"$log" 2>&1; then
		tail -n 20 "$log" | sed 's/^/  | /' >&2
		fail "that failed; the whole log is $log"
	fi
	printf '%s\n' "$inputs" >"$stamp"
	say "  done in $((SECONDS - started)) s"
}

pip=(.venv/bin/python -m pip install --disable-pip-version-check --progress-bar off)

make_venv() {
	# Emptied first: what is no longer locked must not be there to be imported by mistake.
	"$python" -m venv --clear .venv &&
		"${pip[@]}" --require-hashes -r operator/requirements.txt -r tests/requirements.txt
}

install_package() {
	"${pip[@]}" --no-deps --no-build-isolation --editable .
}

cache=${NUMAPLACEMENT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/numaplacement}
mkdir -p "$cache"
python=$(find_python)
"$python" -m tests.rig.packages
dependencies=$(fingerprint "$("$python" -c 'import sys; print(sys.executable, sys.version)')" \
	operator/requirements.txt tests/requirements.txt)
step .stamp-dependencies "$dependencies" "Making .venv with $("$python" --version) and the locked dependencies" make_venv
package=$(fingerprint "$dependencies" pyproject.toml operator/numaplacement/__init__.py)
step .stamp-package "$package" "Installing this package into .venv, editable" install_package
(($# > 0)) || set -- etcd kube-apiserver kubectl kubevirt-crds
.venv/bin/python -m tests.rig.gotools "$@" >/dev/null
