# PID 1 of a host: makes its root, then its sshd, then waits. Started by hosts.py in new namespaces,
# with NAME, OWN, SHARED, HOSTS, ROOT, VENV, PYTHON, LOGIN, KEY, LAPTOP_KEY and PROFILE.
set -eu
mount --make-rprivate /
mkdir -p "$OWN"/layer/{upper,work,root} "$OWN"/{tmp,home,homes}
chmod 1777 "$OWN/tmp"
root=$OWN/layer/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$OWN/layer/upper,workdir=$OWN/layer/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"          # of this network namespace
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=1g,mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o size=16m,mode=755 run "$root/run"
mount --bind "$OWN/tmp" "$root/tmp"
mount --bind "$OWN/home" "$root/root"
mount --bind "$OWN/homes" "$root/home"
chmod 711 "$root/root"                    # Python may lie below it
mount -t tmpfs -o size=1m,mode=755 mnt "$root/mnt"
if [ -n "$SHARED" ]; then
  # What an NFS export would be: one directory that every host mounts.
  mkdir "$root/mnt/shared"
  mount --bind "$SHARED" "$root/mnt/shared"
fi
# Only the environment is here as on a machine that was set up; Bertha's code is not.
mkdir -p "$root$ROOT"
mount -t tmpfs -o size=1m,mode=755 none "$root$ROOT"
for directory in "$VENV" "$PYTHON"; do
  mkdir -p "$root$directory"
  mount --bind "$directory" "$root$directory"
  mount -o remount,bind,ro "$root$directory"
done
hostname "$NAME"
echo "$NAME" >"$root/etc/hostname"
# As Debian installs it, its own name first of all has an address that nobody else reaches.
printf '127.0.0.1 localhost\n127.0.1.1 %s\n%b' "$NAME" "$HOSTS" >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
mkdir -p "$root/run/sshd"
[ ! -f "${OWN%/*}/authority.pem" ] || cp "${OWN%/*}/authority.pem" "$root/etc/authority.pem"

# A home as a login finds it.
settle() {
  cat >"$1/.profile" <<PROFILE
export PATH=$VENV/bin:\$PATH RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
$PROFILE
PROFILE
  [ -f "$1/.bashrc" ] && grep -q .profile "$1/.bashrc" || echo '. ~/.profile' >"$1/.bashrc"
  mkdir -p -m 700 "$1/.ssh"
}
settle "$root/root"
if [ -n "$LOGIN" ]; then
  home=$root/root
  if [ "$LOGIN" != root ]; then
    # A password that nobody can type; without one, sshd holds the account for locked.
    chroot "$root" id "$LOGIN" >/dev/null 2>&1 ||
      chroot "$root" useradd --create-home --shell /bin/bash --password '*' "$LOGIN"
    home=$root/home/$LOGIN
    settle "$home"
  fi
  echo "$KEY" >"$home/.ssh/authorized_keys"
  chroot "$root" chown -R "$LOGIN:" "${home#"$root"}/.ssh" "${home#"$root"}"/.{profile,bashrc}
  rm -f "$root"/etc/ssh/ssh_host_*
  ssh-keygen -q -t ed25519 -N '' -f "$root/etc/ssh/ssh_host_ed25519_key"
  cat >"$root/etc/ssh/sshd_config" <<CONFIG
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
MaxStartups 50
MaxSessions 50
CONFIG
else
  cp "$LAPTOP_KEY" "$root/root/.ssh/id_ed25519"
  chmod 600 "$root/root/.ssh/id_ed25519"
fi
mkdir -p "$root/.before"
cd "$root"
pivot_root . .before
umount -l /.before
cd /root
[ -n "$LOGIN" ] && /usr/sbin/sshd
echo up
# The shell reaps whatever its children leave behind while it waits.
while :; do sleep 1000000 & wait "$!" || :; done
