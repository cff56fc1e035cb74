#!/bin/sh
# Remove what install.sh installed, as root. The identity, the state, the ledger and the configuration stay, unless --purge is given.
set -eu
[ "$(id -u)" = 0 ] || { echo "uninstall.sh: must be run as root" >&2; exit 1; }
case "${1:-}" in "" | --purge) ;; *) echo "uninstall.sh: $1 is not known; there is --purge" >&2; exit 2 ;; esac

systemctl disable --quiet --now tapestry.target tapestryd.service tapestryd.socket tapestry-trainer.socket 2> /dev/null || true
systemctl stop tapestry-trainer.service 2> /dev/null || true
rm -f /etc/systemd/system/tapestry.target /etc/systemd/system/tapestry-*.service /etc/systemd/system/tapestry-*.socket \
    /etc/systemd/system/tapestryd.service /etc/systemd/system/tapestryd.socket
rm -f /usr/lib/sysusers.d/tapestry.conf /usr/lib/tmpfiles.d/tapestry.conf /usr/lib/systemd/user/tapestry-session.service
rm -f /usr/share/man/man1/tapestry.1 /usr/share/man/man1/tapestry-session.1 /usr/share/man/man8/tapestryd.8 /usr/share/man/man8/tapestry-trainer.8 \
    /usr/share/bash-completion/completions/tapestry /usr/share/zsh/vendor-completions/_tapestry /usr/share/fish/vendor_completions.d/tapestry.fish
[ "$(readlink /usr/bin/tapestry)" != /opt/tapestry/bin/tapestry ] || rm /usr/bin/tapestry
rm -rf /opt/tapestry /usr/share/tapestry /usr/share/doc/tapestryd
systemctl daemon-reload

if [ "${1:-}" = --purge ]; then
    rm -rf /etc/tapestry /var/lib/tapestry /var/lib/tapestry-train
    for drop_ins in tapestryd.service.d tapestry-trainer.service.d; do
        rm -f "/etc/systemd/system/$drop_ins/10-data.conf"
        rmdir "/etc/systemd/system/$drop_ins" 2> /dev/null || true  # others' stay
    done
    for user in tapestry tapestry-train; do id "$user" > /dev/null 2>&1 && userdel "$user"; done
    getent group tapestry-admin > /dev/null && groupdel tapestry-admin
    echo "Removed, with the identity, the ledger and all local progress. /srv/tapestry/data, your text, is where it was."
else
    echo "Removed. /etc/tapestry, /var/lib/tapestry and /var/lib/tapestry-train stay; --purge removes them, too."
fi
