/* What a broadcast costs with nothing but the system call: push_floor PORT.
 *
 * GET /listen is answered with a 101 that was made beforehand, and the socket is kept. GET
 * /publish?count=N&size=S&interval=I sends N frames of S bytes to each of them, one send(2) each:
 * back to back, or one frame each I seconds. Nothing is parsed or buffered; where a socket takes no
 * more, the loop waits for it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 17, HEAD = 4096, BACKLOG = 2048, BATCH = 256 };

static const char ACCEPTED[] =
    "HTTP/1.1 101 Switching Protocols\r\n"
    "Upgrade: websocket\r\n"
    "Connection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static int listeners[MOST];      /* descriptors, dense */
static int place[MOST];          /* of each descriptor among them, -1: not one of them */
static int count_of_listeners;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void sleep_until(double moment)
{
    struct timespec time = { (time_t)moment, (long)((moment - (time_t)moment) * 1e9) };
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static size_t make_frame(char *frame, size_t size)
{
    size_t head = size < 126 ? 2 : 4;
    frame[0] = (char)0x81;
    frame[1] = (char)(size < 126 ? size : 126);
    if (size >= 126) {
        frame[2] = (char)(size >> 8);
        frame[3] = (char)(size & 0xff);
    }
    memset(frame + head, 'x', size);
    return head + size;
}

static void send_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd writable = { fd, POLLOUT, 0 };
            poll(&writable, 1, -1);
        } else if (sent < 0) {
            return; /* the next read sees the end */
        } else {
            data += sent;
            size -= (size_t)sent;
        }
    }
}

static double parameter(const char *head, const char *name, double fallback)
{
    const char *found = strstr(head, name);
    return found ? atof(found + strlen(name)) : fallback;
}

static void publish(int fd, const char *head)
{
    static char frame[65536 + 4];
    int count = (int)parameter(head, "count=", 1);
    double interval = parameter(head, "interval=", 0);
    size_t size = make_frame(frame, (size_t)parameter(head, "size=", 300) & 0xffff);
    double began = now();
    char answer[128], body[64];

    for (int i = 0; i < count; i++) {
        if (interval > 0)
            sleep_until(began + i * interval);
        for (int j = 0; j < count_of_listeners; j++)
            send_all(listeners[j], frame, size);
    }
    int length = snprintf(body, sizeof body, "{\"seconds\": %.6f}", now() - began);
    int total = snprintf(answer, sizeof answer,
                         "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
                         length, body);
    send_all(fd, answer, (size_t)total);
    close(fd);
}

static void forget(int fd)
{
    if (place[fd] >= 0) {
        int last = listeners[--count_of_listeners];
        listeners[place[fd]] = last;
        place[last] = place[fd];
        place[fd] = -1;
    }
    close(fd);
}

static void readable(int fd)
{
    char head[HEAD];
    ssize_t size = recv(fd, head, sizeof head - 1, 0); /* a head comes in one piece, from here */
    if (size <= 0) {
        if (size == 0 || errno != EAGAIN)
            forget(fd);
        return;
    }
    if (place[fd] >= 0)
        return; /* a close frame, perhaps: the end follows */
    head[size] = 0;
    if (strncmp(head, "GET /listen", 11) == 0) {
        place[fd] = count_of_listeners;
        listeners[count_of_listeners++] = fd;
        send_all(fd, ACCEPTED, sizeof ACCEPTED - 1);
    } else {
        publish(fd, head);
    }
}

int main(int argc, char **argv)
{
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0);
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_port = htons((unsigned short)atoi(argv[argc - 1])),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct epoll_event event = { .events = EPOLLIN, .data.fd = server }, events[BATCH];

    memset(place, -1, sizeof place);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, BACKLOG)) {
        perror("listen");
        return 1;
    }
    epoll_ctl(poller, EPOLL_CTL_ADD, server, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, BATCH, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != server) {
                readable(fd);
                continue;
            }
            fd = accept4(server, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0 || fd >= MOST) {
                close(fd);
                continue;
            }
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            event.data.fd = fd;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
