# Makes the system calls that it is given ([number, [arguments]]), and says as JSON what each answered.
import ctypes, json, sys

libc = ctypes.CDLL(None, use_errno=True)


def answer(number, arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(it) for it in arguments])
    return 0 if result != -1 else ctypes.get_errno()


status = dict(line.rstrip('\n').split(':\t', 1) for line in open('/proc/self/status'))
answers = [answer(number, arguments) for number, arguments in json.loads(sys.argv[1])]
print(json.dumps({'mode': status['Seccomp'], 'answers': answers}))
