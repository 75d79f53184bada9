#!/usr/bin/env python3
"""
Run a command on a Linux kernel that has four NUMA nodes and a DAX file system: a virtual machine that lives for one command.

    python tests/vm/run.py [OPTIONS]                the project's own assertions, from any directory
    python tests/vm/run.py [OPTIONS] COMMAND...     any command, in the current directory

The command sees this machine's root file system, read-only below an overlay in memory: what it changes there is gone when it
ends.  Only the current directory is shared for writing.  Network: loopback.  See README.md beside this file for what the
machine looks like, and `--help` for the options.  Exits with the command's status; 124 when it ran out of time, 125 when the
machine could not be started or stopped without one (its console is printed then).

Uses the standard library only.
"""

from __future__ import annotations

import argparse
import lzma
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

OUT_OF_TIME, NO_MACHINE = 124, 125
HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]

# Program: the Debian package that has it.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "mkfs.ext4": "e2fsprogs",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
# The first that the package lists know.  Weighted interleaving needs Linux 6.9.
KERNELS = ("linux-image-6.12-amd64", "linux-image-amd64")
ASSERTIONS = ("numa_pages.py", "pools.py")
# What the guest loads, by place in the kernel's module tree: the shared file systems, the overlay, its NVDIMM and ext4.
MODULES = (
    "lib", "crypto", "net/9p", "fs/9p", "fs/netfs", "fs/fscache", "fs/overlayfs", "fs/ext4", "fs/jbd2", "fs/mbcache.ko*",
    "drivers/virtio", "drivers/char/virtio_console.ko*", "drivers/nvdimm", "drivers/dax", "drivers/acpi/nfit",
)  # fmt: skip

# Nodes 0 and 1 have two CPUs each.  2 and 3 have memory only: 2 poses as fast memory beside 0, 3 as far memory beside 1.
CPUS = {0: "0-1", 1: "2-3"}
BESIDE = {2: 0, 3: 1}
DISTANCES = {(0, 1): 21, (0, 2): 13, (0, 3): 30, (1, 2): 23, (1, 3): 20, (2, 3): 33}
# (CPU node, memory node): ns, GB/s.  What the tables tell the kernel; the machine itself is equally fast everywhere.
SPEEDS = {
    (0, 0): (80, 100), (0, 1): (140, 40), (0, 2): (90, 400), (0, 3): (300, 15),
    (1, 0): (140, 40), (1, 1): (80, 100), (1, 2): (150, 40), (1, 3): (250, 20),
}  # fmt: skip

PASSED = ("PATH", "HOME", "LANG", "CI", "VIRTUAL_ENV")
PASSED_PREFIXES = ("NUMBA_", "JITSLAB_", "PYTHON", "PYTEST_")


class MachineError(Exception):
    """The machine cannot be made, with what to do about it."""


def main() -> int:
    """Run what the command line says; return the status to exit with."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so the machine does not stay behind
    try:
        need_tools()
        modules = base_image(options)
        if not options.command:
            options.command = own_assertions(options)
        return run(options, modules)
    except (MachineError, OSError, subprocess.CalledProcessError) as error:
        say(f"vm: {error}")
        return NO_MACHINE


def arguments(line: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line, or of this program's; each default can be set in the environment."""

    def option(name: str, default: str | None, text: str, **more: object) -> None:
        variable = "VM_" + name.upper().replace("-", "_")
        text = f"{text} [{variable}{'' if default is None else ', ' + default}]"
        parser.add_argument(f"--{name}", default=os.environ.get(variable, default), help=text, **more)  # type: ignore[arg-type]

    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    parser = argparse.ArgumentParser(
        description="Run COMMAND in a virtual machine with four NUMA nodes and a DAX file system at /mnt/pmem."
    )
    option("pmem", None, "backing file of the NVDIMM, kept from run to run; without it a new one")
    option("pmem-mb", "512", "size of a new one, MiB", type=int)
    option("dax", "always", "whether its file system maps it directly; never: as a disk", choices=("always", "never"))
    option("node-mb", "768", "memory of each node, MiB", type=int)
    option("timeout", "1800", "seconds until the machine is killed", type=float)
    option("env", "", "names of more variables to pass, separated by blanks")
    option("kernel", None, "Debian package of the kernel; without it the first known of " + ", ".join(KERNELS))
    option("cache", os.path.join(home, "jitslab-vm"), "directory for the unpacked kernel")
    option("append", "", "more kernel parameters (numa_balancing=enable: pages then move by themselves)")
    option("pidfile", None, "file for the process number of qemu: kill -9 of it is a loss of power")
    option("only", "", "without COMMAND: the assertions whose names match this expression of pytest's -k")
    option("accel", None, "what qemu's -accel gets; without it kvm if this machine can, else tcg,thread=single")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="without it: the project's assertions")
    return parser.parse_args(line)


# --- The kernel, unpacked once ---


def need_tools() -> None:
    """Install what is missing where that is possible, else say what to install."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None]
    if not missing:
        return
    install = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0 or "apt" in missing:
        raise MachineError(f"needs {', '.join(missing)}; on Debian, as root: apt-get update && {install}")
    say(f"vm: installing {', '.join(missing)}")
    for command in ("apt-get update -q", f"{install} -qy"):
        if subprocess.run(command.split(), stdout=sys.stderr, check=False).returncode:
            raise MachineError(f"could not install {', '.join(missing)} (offline?): {command} failed")


def base_image(options: argparse.Namespace) -> Path:
    """Return the directory with the kernel and the archive of its modules; makes both in the first run."""
    packages = [options.kernel] if options.kernel else list(KERNELS)
    for package in packages:  # what stands there already needs no network
        if (Path(options.cache) / package / "base.cpio").exists():
            return Path(options.cache) / package
    package, real = next(((p, r) for p in packages if (r := real_package(p))), ("", ""))
    if not real:
        raise MachineError(f"no package {' or '.join(packages)} in the lists of apt; as root: apt-get update, or --kernel")
    target = Path(options.cache) / package
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        unpack(real, Path(work))
        made = Path(work) / "made"
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target


def real_package(package: str) -> str:
    """Return the versioned package that a meta package of kernels stands for, or "" if apt does not know it."""
    told = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False).stdout
    return next((line.split()[-1] for line in told.splitlines() if "Depends: linux-image" in line), "")


def unpack(package: str, work: Path) -> None:
    """Fetch the kernel `package` and leave vmlinuz and base.cpio in work/made.  Nothing is installed."""
    say(f"vm: unpacking {package}, once")
    root = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []  # the directory is not readable for user _apt
    fetch = subprocess.run(["apt-get", "-qq", *root, "download", package], cwd=work, stdout=sys.stderr, check=False)
    if fetch.returncode:
        raise MachineError(f"could not download {package} (offline, or lists out of date: as root, apt-get update)")
    (deb,) = work.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", deb, work / "deb"], check=True)
    (vmlinuz,) = (work / "deb/boot").glob("vmlinuz-*")
    version = vmlinuz.name.removeprefix("vmlinuz-")
    (tree,) = (work / "deb").glob(f"**/lib/modules/{version}")

    image = work / "image"
    modules = image / "lib/modules" / version
    for source in [tree / "modules.builtin", tree / "modules.order", *(f for m in MODULES for f in tree.glob(f"kernel/{m}"))]:
        for file in [source] if source.is_file() else filter(Path.is_file, source.rglob("*")):
            to = modules / file.relative_to(tree)
            to.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".xz":  # the loader of busybox wants them plain
                to.with_suffix("").write_bytes(lzma.decompress(file.read_bytes()))
            else:
                shutil.copyfile(file, to)
    subprocess.run(["busybox", "depmod", "-b", image, version], check=True)
    (image / "bin").mkdir()
    shutil.copy(shutil.which("busybox") or "", image / "bin/busybox")
    (image / "bin/sh").symlink_to("busybox")

    made = work / "made"
    made.mkdir()
    archive(image, made / "base.cpio")
    shutil.copyfile(vmlinuz, made / "vmlinuz")


def archive(tree: Path, to: Path, mode: str = "wb") -> None:
    """Write `tree` in the form that the kernel unpacks into its first file system; several may follow each other."""
    names = "\n".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
    with to.open(mode) as file:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=True,
        )


# --- One run ---


def compile_for_both(options: argparse.Namespace, program: str, *arguments: str) -> None:
    """Run a program of this directory out here, which compiles what it calls inside."""
    # The CPU is another one inside, and Numba's cache knows a function by the CPU it was made for: make both the same.
    os.environ.update(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", JITSLAB_VM="1")
    os.environ["NUMBA_CACHE_DIR"] = str(Path(options.cache).resolve() / "numba")
    subprocess.run([sys.executable, HERE / program, *arguments], check=True)


def own_assertions(options: argparse.Namespace) -> list[str]:
    """Compile out here what the assertions call, and return the command that runs them inside."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins are slow to import there
    os.chdir(PROJECT)
    for program in ASSERTIONS:
        compile_for_both(options, program)
    return [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "--durations=5",
        "-p",
        "no:cacheprovider",
        "-k",
        options.only,
        *(str(HERE / program) for program in ASSERTIONS),
    ]


def run(options: argparse.Namespace, base: Path) -> int:
    """Boot, run the command, print what it prints; return its status."""
    here = Path.cwd()
    if here == Path("/"):
        raise MachineError("the current directory would be shared for writing: not from /")
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        work = Path(name)
        first = work / "first"
        first.mkdir()
        shutil.copyfile(HERE / "init.sh", first / "init")
        (first / "init").chmod(0o755)
        (first / "cwd").write_text(str(here))
        (first / "job").write_text(job(options, here))
        (first / "dax").write_text(options.dax)
        shutil.copyfile(base / "base.cpio", work / "initrd")
        archive(first, work / "initrd", "ab")

        pmem = Path(options.pmem) if options.pmem else work / "pmem"
        if not pmem.exists() or not pmem.stat().st_size:
            with pmem.open("wb") as file:
                file.truncate(options.pmem_mb << 20)
        ended_late = boot(options, base, work, pmem)
        status = work / "status"
        told = status.read_text().strip() if status.exists() else ""
        if told:
            return int(told)
        console = (work / "console").read_text(errors="replace") if (work / "console").exists() else ""
        say(f"vm: {'out of time' if ended_late else 'the machine ended without a status'}; its console:")
        say("\n".join(console.splitlines()[-40:]))
        return OUT_OF_TIME if ended_late else NO_MACHINE


def job(options: argparse.Namespace, here: Path) -> str:
    """Return the command as a shell script with the environment it gets."""
    names = [n for n in os.environ if n in PASSED or n.startswith(PASSED_PREFIXES) or n in options.env.split()]
    lines = [f"export {name}={shlex.quote(os.environ[name])}" for name in names]
    return "\n".join([*lines, f"cd {shlex.quote(str(here))} && exec {shlex.join(options.command)}", ""])


def boot(options: argparse.Namespace, base: Path, work: Path, pmem: Path) -> bool:
    """Run the machine to its end; return whether it was ended for being out of time."""
    read, write = os.pipe()
    late = threading.Event()
    machine = subprocess.Popen(machine_command(options, base, work, pmem, write), stdin=subprocess.DEVNULL, pass_fds=(write,))

    def end() -> None:
        late.set()
        machine.kill()

    timer = threading.Timer(options.timeout, end)
    timer.daemon = True
    timer.start()
    os.close(write)
    try:
        while text := os.read(read, 1 << 16):
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()
        machine.wait()
    finally:
        timer.cancel()
        os.close(read)
        machine.kill()
        machine.wait()
    return late.is_set()


def machine_command(options: argparse.Namespace, base: Path, work: Path, pmem: Path, out: int) -> list[str]:
    """Return the command line of qemu."""
    accel = options.accel or ("kvm" if has_kvm() else "tcg,thread=single")  # several threads: QEMU 7.2 panics now and then
    cpu = "host" if accel.startswith("kvm") else "max"
    console = f"console=ttyS0 quiet panic=-1 numa_balancing=disable {options.append}"
    share = "security_model=none,multidevs=remap"
    return [
        "qemu-system-x86_64", "-accel", accel, "-cpu", cpu, "-smp", "4", "-machine", "q35,nvdimm=on,hmat=on",
        "-m", f"{4 * options.node_mb}M,slots=2,maxmem=16G", *nodes(options.node_mb),
        "-object", f"memory-backend-file,id=pmem,share=on,mem-path={plain(pmem)},size={pmem.stat().st_size}",
        "-device", "nvdimm,memdev=pmem",
        "-virtfs", f"local,path=/,mount_tag=root,readonly=on,{share}",
        "-virtfs", f"local,path={plain(Path.cwd())},mount_tag=here,{share}",
        "-device", "virtio-serial",
        "-add-fd", f"fd={out},set=1",
        "-chardev", "file,id=out,path=/dev/fdset/1,append=on", "-device", "virtserialport,chardev=out,name=out",
        "-chardev", f"file,id=status,path={plain(work / 'status')}", "-device", "virtserialport,chardev=status,name=status",
        "-serial", f"file:{work / 'console'}", "-pidfile", options.pidfile or str(work / "pid"),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(base / "vmlinuz"), "-initrd", str(work / "initrd"), "-append", console,
    ]  # fmt: skip


def nodes(mb: int) -> list[str]:
    """Return the part of the command line that makes the NUMA nodes."""
    words = []
    for node in sorted(CPUS | BESIDE):
        words += ["-object", f"memory-backend-ram,id=node{node},size={mb}M", "-numa"]
        place = f"cpus={CPUS[node]},initiator={node}" if node in CPUS else f"initiator={BESIDE[node]}"
        words.append(f"node,nodeid={node},memdev=node{node},{place}")
    for (a, b), distance in DISTANCES.items():
        words += ["-numa", f"dist,src={a},dst={b},val={distance}"]
    for (cpu, memory), (ns, gb) in SPEEDS.items():
        pair = f"hmat-lb,initiator={cpu},target={memory},hierarchy=memory"
        words += ["-numa", f"{pair},data-type=access-latency,latency={ns}"]
        words += ["-numa", f"{pair},data-type=access-bandwidth,bandwidth={gb}G"]
    return words


def has_kvm() -> bool:
    """Return whether the CPU and this user may run a machine without emulation."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return bool(flags & {"vmx", "svm"}) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def plain(path: Path) -> str:
    """Return a path as a value among qemu's options, where a comma ends one."""
    return str(path).replace(",", ",,")


def say(text: str) -> None:
    """Tell the user, beside the command's output."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
