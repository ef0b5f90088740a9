// vsock listen PORT: accepts one connection after the other and sends back what comes.
// vsock connect CID PORT: stdin to the peer, what comes from it to stdout, until both have ended.

#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

// Moves what is there from one to the other; 0 when `from` has ended.
static int move(int from, int to)
{
	char buf[65536];
	ssize_t n = read(from, buf, sizeof buf);

	for (ssize_t done = 0, w; done < n; done += w) {
		w = write(to, buf + done, n - done);
		if (w <= 0)
			return 0;
	}
	return n > 0;
}

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	int listens = argc == 3 && !strcmp(argv[1], "listen"), connects = argc == 4 && !strcmp(argv[1], "connect");
	int s = socket(AF_VSOCK, SOCK_STREAM, 0);
	struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };

	if (!listens && !connects) {
		fprintf(stderr, "usage: vsock listen PORT | vsock connect CID PORT\n");
		return 2;
	}
	if (s < 0)
		return fail("vsock: socket");
	a.svm_port = strtoul(argv[argc - 1], NULL, 0);
	if (listens) {
		if (bind(s, (void *)&a, sizeof a) || listen(s, 8))
			return fail("vsock: listen");
		for (;;) {
			int peer = accept(s, NULL, NULL);
			if (peer < 0)
				return fail("vsock: accept");
			while (move(peer, peer))
				;
			close(peer);
		}
	}
	a.svm_cid = strtoul(argv[2], NULL, 0);
	if (connect(s, (void *)&a, sizeof a))
		return fail("vsock: connect");
	struct pollfd fds[2] = { { .fd = 0, .events = POLLIN }, { .fd = s, .events = POLLIN } };
	while (poll(fds, 2, -1) > 0) {
		if (fds[0].revents && !move(0, s)) {
			shutdown(s, SHUT_WR);
			fds[0].fd = -1;
		}
		if (fds[1].revents && !move(s, 1))
			return 0;
	}
	return 1;
}
