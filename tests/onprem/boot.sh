# PID 1 of a host: makes its root, then its sshd, then waits. Started by hosts.py in new namespaces,
# with NAME, ADDRESS, STATE, SHARED, HOSTS, ROOT, VENV, PYTHON and LOGIN (yes: it takes SSH).
set -eu
mount --make-rprivate /
own=$STATE/$NAME
mkdir -p "$own"/layer/{upper,work,root} "$own"/{tmp,home}
chmod 1777 "$own/tmp"
root=$own/layer/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$own/layer/upper,workdir=$own/layer/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"          # of this network namespace
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=1g,mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o size=16m,mode=755 run "$root/run"
mount --bind "$own/tmp" "$root/tmp"
mount --bind "$own/home" "$root/root"
chmod 700 "$root/root"
# What an NFS export would be: one directory that every host mounts.
mount -t tmpfs -o size=1m mnt "$root/mnt"
mkdir "$root/mnt/shared"
mount --bind "$SHARED" "$root/mnt/shared"
# Only the environment is here as on a machine that was set up; Bertha's code is not.
mkdir -p "$root$ROOT"
mount -t tmpfs -o size=1m none "$root$ROOT"
for directory in "$VENV" "$PYTHON"; do
  mkdir -p "$root$directory"
  mount --bind "$directory" "$root$directory"
  mount -o remount,bind,ro "$root$directory"
done
hostname "$NAME"
echo "$NAME" >"$root/etc/hostname"
printf '127.0.0.1 localhost\n%b' "$HOSTS" >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
cat >"$root/root/.profile" <<PROFILE
export PATH=$VENV/bin:\$PATH RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
PROFILE
[ -f "$root/root/.bashrc" ] || echo '. ~/.profile' >"$root/root/.bashrc"
mkdir -p -m 700 "$root/root/.ssh" "$root/run/sshd"
if [ "$LOGIN" = yes ]; then
  cp "$STATE/key.pub" "$root/root/.ssh/authorized_keys"
  rm -f "$root"/etc/ssh/ssh_host_*
  ssh-keygen -q -t ed25519 -N '' -f "$root/etc/ssh/ssh_host_ed25519_key"
  cat >"$root/etc/ssh/sshd_config" <<CONFIG
ListenAddress $ADDRESS
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
MaxStartups 50
MaxSessions 50
CONFIG
else
  cp "$STATE/key" "$root/root/.ssh/id_ed25519"
  chmod 600 "$root/root/.ssh/id_ed25519"
fi
mkdir -p "$root/.before"
cd "$root"
pivot_root . .before
umount -l /.before
cd /root
[ "$LOGIN" = yes ] && /usr/sbin/sshd
echo up
# The shell reaps whatever its children leave behind while it waits.
while :; do sleep 1000000 & wait "$!" || :; done
