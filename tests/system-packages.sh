#!/bin/sh
# Install what the tests use and the Python index does not have: a browser, nginx,
# HAProxy, Caddy, a client that shows HTTP/2 pushes, and npm.
# Only where that needs no password; elsewhere the tests skip and say what is missing.
set -eu

any_of() {
    for name in "$@"; do
        command -v "$name" >/dev/null && return 0
    done
    return 1
}

wanted=
[ -n "${CHROMIUM:-}" ] ||
    any_of chromium-headless-shell chromium chromium-browser google-chrome ||
    wanted="chromium-headless-shell"
any_of nginx /usr/sbin/nginx || wanted="$wanted nginx-light"
any_of haproxy /usr/sbin/haproxy || wanted="$wanted haproxy"
any_of caddy || wanted="$wanted caddy"
any_of nghttp || wanted="$wanted nghttp2-client"
any_of npm || wanted="$wanted npm"

[ -n "$wanted" ] || exit 0
[ "$(id -u)" = 0 ] || exit 0
any_of apt-get || exit 0

# Packages of servers would start them; exit 101 from this file forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi

echo "installing for the tests: $wanted"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of names
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $wanted; } >/dev/null ||
    echo "apt-get could not install $wanted; tests that need it will skip"
