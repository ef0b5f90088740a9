// The init of the test guests: file systems, modules, network, power button, then a shell on the console, again and again.
// In C and without a fork before the shell: on software KVM a fork costs 66 ms, a system call 0.3 ms.
//
// Words of the kernel's command line that it knows: nacelle.ip=ADDRESS/PREFIX[,GATEWAY] and nacelle.dhcp, both for eth0.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BUTTONS 4

static char console[64] = "/dev/console";
// Software KVM shows AVX in CPUID although the kernel there cannot keep its registers: the C library in busybox must not
// choose it. (TERM is what a serial console is at least.)
static char *const environment[] = {
	"PATH=/sbin:/bin:/usr/sbin:/usr/bin", "HOME=/root", "TERM=vt100", "PS1=\\w # ",
	"GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM,-RTM",
	NULL
};

static void complain(const char *what)
{
	dprintf(2, "init: %s: %s\n", what, strerror(errno));
}

// Reads a whole small file into buf as a string.
static char *slurp(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, buf, size - 1);

	if (fd >= 0)
		close(fd);
	buf[n > 0 ? n : 0] = 0;
	return buf;
}

// What is already there (the kernel mounts /dev by itself on a disk) is no error.
static void mounts(void)
{
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("run", "/run", "tmpfs", 0, NULL);
	mount("tmp", "/tmp", "tmpfs", 0, NULL);
	mkdir("/dev/pts", 0755);
	mount("pts", "/dev/pts", "devpts", 0, "ptmxmode=666");
	symlink("/proc/self/fd", "/dev/fd");
	symlink("fd/0", "/dev/stdin");
	symlink("fd/1", "/dev/stdout");
	symlink("fd/2", "/dev/stderr");
}

// Loads what /lib/modules/order lists, in that order; the small kernel has no such file.
static void modules(void)
{
	char path[256];
	FILE *order = fopen("/lib/modules/order", "re");

	while (order && fgets(path, sizeof path, order)) {
		path[strcspn(path, "\n")] = 0;
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST && errno != ENODEV))
			complain(path);
		if (fd >= 0)
			close(fd);
	}
	if (order)
		fclose(order);
}

// The terminal behind /dev/console, which itself cannot be a controlling terminal.
static void find_console(void)
{
	char active[256], *last;

	slurp("/sys/class/tty/console/active", active, sizeof active);
	active[strcspn(active, "\n")] = 0;
	last = strrchr(active, ' ');
	last = last ? last + 1 : active;
	if (*last)
		snprintf(console, sizeof console, "/dev/%.58s", last);
}

// Starts a program, on the console as its controlling terminal or with init's own streams.
// vfork: the page tables of init are not copied, and the child does system calls only.
static pid_t spawn(char *const argv[], int on_console)
{
	sigset_t none;
	pid_t pid;

	sigemptyset(&none);
	pid = vfork();
	if (pid)
		return pid;
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (on_console) {
		int tty = open(console, O_RDWR);
		ioctl(tty, TIOCSCTTY, 1);
		dup2(tty, 0);
		dup2(tty, 1);
		dup2(tty, 2);
		if (tty > 2)
			close(tty);
	}
	execve("/bin/busybox", argv, environment);
	_exit(127);
}

static int set_address(int s, unsigned long request, struct ifreq *r, in_addr_t address)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = address };

	memcpy(&r->ifr_addr, &in, sizeof in);
	return ioctl(s, request, r);
}

static int up(int s, const char *name)
{
	struct ifreq r = { .ifr_flags = IFF_UP | IFF_RUNNING };

	strcpy(r.ifr_name, name);
	return ioctl(s, SIOCSIFFLAGS, &r);
}

// spec: ADDRESS/PREFIX[,GATEWAY]
static void set_static(int s, char *spec)
{
	struct ifreq r = { .ifr_name = "eth0" };
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
	struct sockaddr_in gateway = { .sin_family = AF_INET }, any = { .sin_family = AF_INET };
	char *address = strtok(spec, "/"), *prefix = strtok(NULL, ","), *via = strtok(NULL, ",");
	int bits = prefix ? atoi(prefix) : 0;

	if (bits < 1 || bits > 32) {
		dprintf(2, "init: nacelle.ip is ADDRESS/PREFIX[,GATEWAY]\n");
		return;
	}
	if (set_address(s, SIOCSIFADDR, &r, inet_addr(address)) ||
	    set_address(s, SIOCSIFNETMASK, &r, htonl(0xffffffffu << (32 - bits))) || up(s, "eth0"))
		complain("nacelle.ip");
	if (!via)
		return;
	gateway.sin_addr.s_addr = inet_addr(via);
	memcpy(&route.rt_gateway, &gateway, sizeof gateway);
	memcpy(&route.rt_dst, &any, sizeof any);
	memcpy(&route.rt_genmask, &any, sizeof any);
	if (ioctl(s, SIOCADDRT, &route))
		complain("nacelle.ip: gateway");
}

static void network(void)
{
	static char *const udhcpc[] = { "udhcpc", "-f", "-S", "-t", "20", "-T", "1", "-i", "eth0", "-s", "/etc/udhcpc", NULL };
	char words[4096], *word, *save;
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	up(s, "lo");
	slurp("/proc/cmdline", words, sizeof words);
	for (word = strtok_r(words, " \n", &save); word && if_nametoindex("eth0"); word = strtok_r(NULL, " \n", &save)) {
		if (!strncmp(word, "nacelle.ip=", 11)) {
			set_static(s, word + 11);
		} else if (!strcmp(word, "nacelle.dhcp")) {
			up(s, "eth0");
			spawn(udhcpc, 0);
		}
	}
	close(s);
}

static void end(int how)
{
	sync();
	reboot(how);
	complain("reboot");
}

int main(void)
{
	static char *const shell[] = { "sh", NULL };
	struct pollfd fds[1 + BUTTONS] = { 0 };
	struct utsname name;
	sigset_t signals;
	pid_t pid;
	time_t started;
	int n = 0;

	mounts();
	modules();
	sethostname("guest", 5);
	find_console();
	network();

	// What busybox's halt, poweroff and reboot send to process 1, and the end of children.
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGUSR2);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	fds[n++] = (struct pollfd){ .fd = signalfd(-1, &signals, SFD_CLOEXEC), .events = POLLIN };
	for (int i = 0; i < BUTTONS; i++) {
		char path[32];
		snprintf(path, sizeof path, "/dev/input/event%d", i);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0)
			fds[n++] = (struct pollfd){ .fd = fd, .events = POLLIN };
	}

	uname(&name);
	dprintf(1, "nacelle-guest ready %s\n", name.release);
	pid = spawn(shell, 1);
	started = time(NULL);

	for (;;) {
		struct signalfd_siginfo signal;
		struct input_event event;

		if (poll(fds, n, -1) < 0)
			continue;
		for (int i = 1; i < n; i++) {
			if (!(fds[i].revents & POLLIN) || read(fds[i].fd, &event, sizeof event) != sizeof event)
				continue;
			if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) {
				dprintf(1, "nacelle-guest power button\n");
				end(RB_POWER_OFF);
			}
		}
		if (!(fds[0].revents & POLLIN) || read(fds[0].fd, &signal, sizeof signal) != sizeof signal)
			continue;
		switch (signal.ssi_signo) {
		case SIGUSR1:
			end(RB_HALT_SYSTEM);
			break;
		case SIGUSR2:
			end(RB_POWER_OFF);
			break;
		case SIGTERM:
			end(RB_AUTOBOOT);
			break;
		case SIGCHLD:
			for (pid_t dead; (dead = waitpid(-1, NULL, WNOHANG)) > 0;) {
				if (dead != pid)
					continue;
				// A shell that ends at once would start again without end: its console is gone.
				if (time(NULL) - started < 1)
					sleep(1);
				pid = spawn(shell, 1);
				started = time(NULL);
			}
		}
	}
}
