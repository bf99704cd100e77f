#!/bin/sh
# What make bench needs beside Go, which has to be there: Debian's packages, of which
# its rivals are made. Where they are installed already, nothing is done; a rival that
# cannot be installed is shown as failing, and keeps no other from it.
set -u
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
policy=${POLICY:-/usr/sbin/policy-rc.d}
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update || echo "bench: the lists of packages could not be brought up to date" >&2
for p in $missing; do
  apt-get -q -y --no-install-recommends install "$p" || echo "bench: $p could not be installed: what needs it will fail" >&2
done
exit 0
