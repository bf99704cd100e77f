#!/bin/sh
# What make bench needs: Go, which it asks for, and Debian's packages, of which its
# rivals are made. Where they are installed already, nothing is done; a rival that
# is missing is shown as failing.
set -eu
if ! command -v "${GO:-go}" >/dev/null; then
  echo "bench: ${GO:-go} is not found. Debian's is too old: install Go as go.mod names it from https://go.dev/dl, or set GO" >&2
  exit 1
fi
missing=
for p in nginx-light docker-registry iproute2; do
  [ "$p" = nginx-light ] && command -v nginx >/dev/null && continue
  dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "bench: not installed, and only root on Debian can:$missing" >&2
  exit 0
fi
# The packages' own services must not start.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
# shellcheck disable=SC2086 # a list
apt-get -q -y --no-install-recommends install $missing
