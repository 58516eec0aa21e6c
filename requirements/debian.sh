#!/bin/sh
# Installs the Debian packages named as arguments, where they are missing. Starts no service: Debian starts a daemon
# when its package is installed, so policy-rc.d forbids that for the while, and goes again if it was not there before.
set -eu

missing=
for package in "$@"; do
    if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed'; then
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "Needed here, by their Debian names:$missing. Install them with this system's package manager." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    root=
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    root=sudo
else
    echo "Needed here:$missing. As root, type: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
fi
echo "Installing from Debian:$missing"
$root apt-get -qq -o Acquire::Retries=3 update </dev/null
# shellcheck disable=SC2086  # one word for each package is what is wanted
$root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 install -y --no-install-recommends $missing \
    </dev/null >/dev/null
