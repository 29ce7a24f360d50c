#!/bin/bash
# Writes the root file system that every case builds on, made of busybox-static.
# The bytes are the same each time.   usage: mkbase.sh OUT.tar
set -eu
out=$1
w=$(mktemp -d); r=$w/r
trap 'rm -rf "$w"' EXIT
mkdir -p $r/bin $r/etc $r/home/app $r/root $r/tmp $r/usr/bin $r/var/lib $r/srv/data/sub $r/opt
cp /bin/busybox $r/bin/busybox
for a in sh ash cat ls cp mv rm mkdir rmdir ln chmod chown touch echo printf stat id env sleep true false test head tail wc sort sed awk grep find xargs tr cut dd od md5sum sha256sum sync tar gzip gunzip date hostname pwd whoami uname kill seq readlink basename dirname mktemp du df mount umount adduser addgroup which; do
  ln -s busybox $r/bin/$a
done
printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\napp:x:1234:2345:app:/home/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > $r/etc/passwd
printf 'root:x:0:\ndaemon:x:1:\nstaff:x:50:app\napp:x:2345:\nnogroup:x:65534:\n' > $r/etc/group
printf 'base data\n' > $r/srv/data/keep.txt
printf 'shared\n' > $r/srv/data/sub/deep.txt
ln -s data $r/srv/link            # /srv/link -> data (relative)
ln -s /srv/data $r/opt/abs        # /opt/abs -> /srv/data (absolute)
ln -s ../../etc/passwd $r/opt/escape
chmod 1777 $r/tmp; chmod 700 $r/root
chmod 0755 $r $r/bin $r/etc $r/home $r/usr $r/usr/bin $r/var $r/var/lib $r/srv $r/srv/data $r/srv/data/sub $r/opt $r/home/app $r/bin/busybox
chmod 0644 $r/etc/passwd $r/etc/group $r/srv/data/keep.txt $r/srv/data/sub/deep.txt
tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@1600000000 --format=pax --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
    -C $r --exclude=./home/app -cf $w/a.tar .
tar --sort=name --numeric-owner --owner=1234 --group=2345 --mtime=@1600000000 --format=pax --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
    -C $r -cf $w/b.tar ./home/app
tar -Af $w/a.tar $w/b.tar
mv "$w/a.tar" "$out"
