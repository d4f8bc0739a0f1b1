/* A web page that says where it runs: which host, which kernel. One process,
 * one connection at a time, no library but libc. */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Process 1 of a container gets only the signals that it asks for. */
static void end(int signal) { _exit(0); }

static void answer(int client) {
	char request[2048], page[1024], head[256];
	struct timeval patience = {.tv_sec = 5};
	struct utsname host;

	setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (read(client, request, sizeof request) <= 0)
		return;
	uname(&host);
	int body = snprintf(page, sizeof page, "hello from %s, Linux %s\n", host.nodename, host.release);
	int lead = snprintf(head, sizeof head, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", body);
	if (write(client, head, lead) == lead && !strncmp(request, "GET ", 4))
		(void)!write(client, page, body);
	shutdown(client, SHUT_WR);
	while (read(client, request, sizeof request) > 0)
		;
}

int main(void) {
	const char *port = getenv("PORT");
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8080)};
	int yes = 1, server = socket(AF_INET, SOCK_STREAM, 0);

	signal(SIGTERM, end);
	signal(SIGINT, end);
	signal(SIGPIPE, SIG_IGN);
	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (server < 0 || bind(server, (struct sockaddr *)&addr, sizeof addr) || listen(server, 16)) {
		perror("web");
		return 1;
	}
	for (;;) {
		int client = accept(server, NULL, NULL);
		if (client < 0)
			continue;
		answer(client);
		close(client);
	}
}
