#!/usr/bin/env bash
# Runs Rust tests on an emulated Sapphire Rapids: AVX-512 BF16 and AMX, whatever the CPU of this machine is.
#
# Bochs emulates the machine, instruction for instruction, and boots Linux, whose first process runs the tests. Needed:
# - Bochs 3.0 with scripts/bochs-3.0.patch (XFD, by which Linux hands out tiles; VDPBF16PS with an operand in memory; the upper half
#   of VCVTNE2PS2BF16; no log entries from a signal handler), built by
#   ./configure --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-handlers-chaining \
#     --enable-repeat-speedups --with-nogui
# - a kernel of Linux, 5.16 or later, with the serial console and RAM disks built in, such as Debian's linux-image-cloud-amd64
# - grub-mkrescue for a BIOS, xorriso, mtools, cpio, a static busybox, and the BIOS of Bochs
#
# Usage: BOCHS=bochs KERNEL=vmlinuz scripts/test_amx.sh TEST_BINARY [ARGUMENT...]
set -euo pipefail

: "${BOCHS:=bochs}" "${KERNEL:=$(find /boot -name 'vmlinuz-*' | tail -1)}" "${BIOS:=/usr/share/bochs/BIOS-bochs-latest}"
: "${VGA_BIOS:=/usr/share/vgabios/vgabios.stdvga.bin}" "${SECONDS_AT_MOST:=3000}"
binary=$1
shift
for program in "$BOCHS" grub-mkrescue xorriso mcopy cpio busybox; do
    command -v "$program" >/dev/null || { echo "scripts/test_amx.sh: $program is missing; see its first lines" >&2; exit 2; }
done
for file in "$KERNEL" "$BIOS" "$VGA_BIOS" "$binary"; do
    [ -f "$file" ] || { echo "scripts/test_amx.sh: no file '$file'; see its first lines" >&2; exit 2; }
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
root=$folder/root here=$PWD
mkdir -p "$root"/{bin,proc,sys,dev,tmp} "$root$here/tests" "$folder/image/boot/grub"

# The test binary, its libraries, and what its tests read.
cp "$(command -v busybox)" "$root/bin/busybox"
strip -o "$root/tests" "$binary"
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp -a tests/fixtures "$root$here/tests/"
cat >"$root/init" <<END
#!/bin/busybox sh
export PATH=/bin TMPDIR=/tmp HOME=/tmp
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs tmpfs /tmp
busybox ip link set lo up
cd $here
/tests --test-threads 1 $(printf '%q ' "$@")
echo "EXIT STATUS \$?"
busybox sleep 1
busybox reboot -f
END
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) >"$folder/image/boot/initrd"
cp "$KERNEL" "$folder/image/boot/vmlinuz"
# Bochs counts an instruction as a tick of the time stamp, so Linux is told its frequency. Its ACPI would need a BIOS for
# system management mode. It reports fast short moves without fast moves (580), which Linux takes for a CPU with both.
cat >"$folder/image/boot/grub/grub.cfg" <<'END'
set timeout=0
linux /boot/vmlinuz console=ttyS0 quiet panic=-1 reboot=t acpi=off ibt=off nokaslr mitigations=off tsc=reliable tsc_early_khz=100000 clearcpuid=580
initrd /boot/initrd
boot
END
grub-mkrescue -o "$folder/image.iso" "$folder/image" 2>"$folder/grub.log" || { cat "$folder/grub.log" >&2; exit 2; }

cat >"$folder/machine" <<END
cpu: model=sapphire_rapids, exclude_features="la57,cet,uintr,pks,pku", count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=2048, host=2048
romimage: file=$BIOS
vgaromimage: file=$VGA_BIOS
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$folder/image.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$folder/output
log: $folder/log
panic: action=fatal
error: action=ignore
info: action=ignore
display_library: nogui
clock: sync=none
END
touch "$folder/output"
timeout "$SECONDS_AT_MOST" "$BOCHS" -q -f "$folder/machine" >"$folder/bochs.log" 2>&1 &
emulator=$!
# An interrupted test ends the emulator too.
trap 'kill "$emulator" 2>/dev/null || true; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
tail --pid="$emulator" -n +1 -f "$folder/output" &
wait "$!"
grep -a -q '^EXIT STATUS 0' "$folder/output" || { echo "scripts/test_amx.sh: the tests failed or did not end" >&2; exit 1; }
