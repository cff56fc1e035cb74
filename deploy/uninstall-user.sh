#!/bin/sh
# Remove what install-user.sh installed, as the same user. Identity, state, ledger and configuration stay, unless --purge is given.
set -eu
[ "$(id -u)" != 0 ] || { echo "uninstall-user.sh: is for ordinary users; as root there is deploy/uninstall.sh" >&2; exit 1; }
case "${1:-}" in "" | --purge) ;; *) echo "uninstall-user.sh: $1 is not known; there is --purge" >&2; exit 2 ;; esac
shares=${XDG_DATA_HOME:-$HOME/.local/share}
state=${XDG_STATE_HOME:-$HOME/.local/state}/tapestry
config=${XDG_CONFIG_HOME:-$HOME/.config}

systemctl --user disable --quiet --now tapestry.service tapestry-session.service 2> /dev/null || true
rm -f "$config/systemd/user/tapestry.service" "$config/systemd/user/tapestry-session.service" "$HOME/.local/bin/tapestry"
for file in man/man1/tapestry.1 man/man1/tapestry-session.1 man/man8/tapestryd.8 man/man8/tapestry-trainer.8 \
    bash-completion/completions/tapestry zsh/vendor-completions/_tapestry fish/vendor_completions.d/tapestry.fish; do
    rm -f "$shares/$file"
done
rm -rf "$shares/tapestry"
systemctl --user daemon-reload

if [ "${1:-}" = --purge ]; then
    rm -rf "$state" "$config/tapestry"
    echo "Removed, with the identity, the ledger and all local progress. Your text is where it was."
else
    echo "Removed. $config/tapestry and $state stay; --purge removes them, too."
fi
