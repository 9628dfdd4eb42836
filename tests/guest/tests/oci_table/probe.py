# Says as JSON what a process sees of what its specification asks for. Runs in the container, on Kata and on runc.
import ctypes, fcntl, json, os, resource, struct, sys, termios

libc = ctypes.CDLL(None, use_errno=True)
seen = {}


def see(key, look):
    try:
        seen[key] = str(look())
    except Exception as error:
        number = getattr(error, 'errno', None)
        seen[key] = 'errno %d' % number if number else type(error).__name__


def text(path):
    with open(path) as file:
        return file.read().strip()


def syscall(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(it) if isinstance(it, int) else it for it in arguments])
    return result if result != -1 else 'errno %d' % ctypes.get_errno()


def attempt(path, flags):
    os.close(os.open(path, flags))
    return 'opened'


status = dict(line.split(':\t', 1) for line in text('/proc/self/status').split('\n') if ':\t' in line)
for name in 'CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp'.split():
    see(name, lambda: status[name].lstrip('0') or '0')
see('cpus', lambda: status['Cpus_allowed_list'])
see('ids', lambda: '%d %d' % (os.getuid(), os.getgid()))
see('groups', lambda: sorted(os.getgroups()))
mask = os.umask(0)
see('umask', lambda: oct(mask))
see('cwd', os.getcwd)
see('args', lambda: sys.argv[1:])
see('env', lambda: os.environ['ASKED'])
see('nofile', lambda: resource.getrlimit(resource.RLIMIT_NOFILE))
see('oom', lambda: text('/proc/self/oom_score_adj'))
see('host', lambda: os.uname().nodename)
see('domain', lambda: text('/proc/sys/kernel/domainname'))
see('machine', lambda: os.uname().machine)
see('pid', os.getpid)
see('policy', lambda: os.sched_getscheduler(0))
see('nice', lambda: os.nice(0))
see('io', lambda: divmod(syscall(252, 1, 0), 8192))
attributes = ctypes.create_string_buffer(56)
see('deadline', lambda: syscall(315, 0, attributes, 48, 0) or struct.unpack('IIQiIQQQ', attributes.raw[:48])[2:])
see('terminal', lambda: os.isatty(0))
see('size', lambda: struct.unpack('HHHH', fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2])
see('links', lambda: 'eth0' in os.listdir('/sys/class/net'))
for name in 'uid_map', 'gid_map':
    see(name, lambda: text('/proc/self/' + name).split())
see('uptime', lambda: float(text('/proc/uptime').split()[0]) > 1_000_000)
see('monotonic', lambda: __import__('time').monotonic() > 2_000_000)

# Of the first namespace of each kind the kernel fixes the number.
FIRST = {'ipc': 4026531839, 'uts': 4026531838, 'user': 4026531837, 'pid': 4026531836, 'cgroup': 4026531835, 'time': 4026531834}
for kind, first in FIRST.items():
    see('ns ' + kind, lambda: 'first' if os.stat('/proc/self/ns/' + kind).st_ino == first else 'own')

mounts = {}
for line in text('/proc/self/mountinfo').split('\n'):
    before, after = line.split(' - ')
    before, after = before.split(' '), after.split(' ')
    mounts[before[4]] = (before[5].split(','), before[6:], after[0], after[1], after[2].split(','))
see('root', lambda: mounts['/'][0][0])
see('propagation', lambda: [word.split(':')[0] for word in mounts['/'][1]])
see('tmp type', lambda: mounts['/asked/tmp'][2])
see('tmp source', lambda: mounts['/asked/tmp'][3])
see('tmp options', lambda: sorted(set(mounts['/asked/tmp'][0]) & {'nosuid', 'nodev', 'noexec', 'noatime', 'ro'}))
see('tmp data', lambda: oct(os.stat('/asked/tmp').st_mode & 0o7777))
see('tmp propagation', lambda: [word.split(':')[0] for word in mounts['/asked/tmp'][1]])
see('copied mode', lambda: oct(os.stat('/asked/copied').st_mode & 0o7777))
see('copied up', lambda: text('/asked/copied/file'))
see('volume', lambda: [text('/asked/volume/file'), mounts['/asked/volume'][0][0]])
see('mapped', lambda: '%d %d' % (os.stat('/asked/mapped').st_uid, os.stat('/asked/mapped').st_gid))
see('masked file', lambda: repr(text('/asked/secret')))
see('masked directory', lambda: os.listdir('/asked/hidden'))
see('fixed', lambda: mounts['/asked/fixed'][0][0])
see('sysctl net', lambda: text('/proc/sys/net/ipv4/ip_default_ttl'))
see('sysctl ipc', lambda: text('/proc/sys/kernel/msgmax'))
see('hook', lambda: text('/asked/tmp/hook'))

node = os.lstat('/dev/asked') if os.path.lexists('/dev/asked') else None
see('node', lambda: '%o %d:%d' % (node.st_mode, os.major(node.st_rdev), os.minor(node.st_rdev)))
see('node owner', lambda: '%d %d' % (node.st_uid, node.st_gid))
see('node read', lambda: attempt('/dev/asked', os.O_RDONLY))
see('node write', lambda: attempt('/dev/asked', os.O_WRONLY))
see('log write', lambda: attempt('/dev/kmsg', os.O_WRONLY))

see('mkdir', lambda: syscall(83, ctypes.c_char_p(b'/asked/new'), 0))
see('getpriority 5', lambda: syscall(140, 5, 0))
see('getpriority 6', lambda: syscall(140, 6, 0))
see('socket family', lambda: syscall(41, 0x10005, 1, 0))
see('unnamed call', lambda: syscall(248, 0, 0, 0, 0, 0))

for file in ('memory.max memory.low memory.swap.max memory.high pids.max cpu.max cpu.weight cpu.max.burst cpu.idle '
             'io.weight hugetlb.2MB.max').split():
    see(file, lambda: text('/sys/fs/cgroup/' + file))

print(json.dumps(seen), flush=True)
sys.stdin.read() if 'wait' in sys.argv else None
