/* PID 1 of a test guest: prints a marker, then does what the kernel parameter end= says, which the kernel
 * hands to it in the environment. No libc, so that the initrd is a few KiB. */

static long call(long number, long a, long b, long c, long d)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = 0;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

enum {
	READ = 0, WRITE = 1, OPEN = 2, NANOSLEEP = 35, SOCKET = 41, CONNECT = 42, EXIT = 60, MOUNT = 165,
	REBOOT = 169
};

static void print(const char *text)
{
	long length = 0;
	while (text[length])
		length++;
	call(WRITE, 1, (long)text, length, 0);
}

static int is(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static void reboot(long command)
{
	call(REBOOT, 0xfee1dead, 672274793, command, 0);
}

static void print_file(const char *name, const char *path)
{
	char text[64];
	long file = call(OPEN, (long)path, 0, 0, 0);
	long length = call(READ, file, (long)text, sizeof text - 1, 0);

	print(name);
	print("=");
	text[length > 0 ? length : 0] = 0;
	print(length > 0 ? text : "none");
	print("\n");
}

/* Says what it finds behind each device. */
static void probe(void)
{
	/* sockaddr_vm: family, reserved, port, cid, padding. */
	struct { unsigned short family, reserved; unsigned int port, cid, rest; } host = {40, 0, 1024, 2, 0};
	long socket = call(SOCKET, 40, 1, 0, 0);

	call(MOUNT, (long)"sys", (long)"/sys", (long)"sysfs", 0);
	call(MOUNT, (long)"dev", (long)"/dev", (long)"devtmpfs", 0);
	call(MOUNT, (long)"roots", (long)"/mnt", (long)"virtiofs", 0);
	print_file("mac", "/sys/class/net/eth0/address");
	print_file("mtu", "/sys/class/net/eth0/mtu");
	print_file("serial", "/sys/block/vda/serial");
	print_file("read-only", "/sys/block/vda/ro");
	print_file("disk", "/dev/vda");
	print_file("share", "/mnt/probe");
	if (call(CONNECT, socket, (long)&host, 16, 0) == 0)
		call(WRITE, socket, (long)"over vsock", 10, 0);
	print("PROBED\n");
}

__attribute__((used)) static void start(char **stack)
{
	const char *end = "";
	char **environment = stack + 1 + (long)stack[0] + 1;
	long pause[2] = {0, 20000000};

	for (; *environment; environment++) {
		const char *word = *environment;
		if (word[0] == 'e' && word[1] == 'n' && word[2] == 'd' && word[3] == '=')
			end = word + 4;
	}
	print("GUEST-UP\n");
	if (is(end, "reset"))
		reboot(0x01234567);
	if (is(end, "off"))
		reboot(0x4321fedc);
	if (is(end, "probe"))
		probe();
	if (is(end, "exit"))
		call(EXIT, 3, 0, 0, 0);
	if (is(end, "panic")) {
		call(MOUNT, (long)"proc", (long)"/proc", (long)"proc", 0);
		long trigger = call(OPEN, (long)"/proc/sysrq-trigger", 1, 0, 0);
		call(WRITE, trigger, (long)"c", 1, 0);
	}
	for (;;) {
		call(NANOSLEEP, (long)pause, 0, 0, 0);
		if (is(end, "never"))
			print("tick\n");
	}
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call start\n");
