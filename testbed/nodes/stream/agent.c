/* testbed-agent: runs commands and moves files on a machine that is reached over ssh.
 *
 * sshd starts one for each connection.  It reads frames from its standard input and writes frames
 * to its standard output, so that any number of commands share one channel: a channel each would
 * cost a process of sshd's and a shell, and a server allows ten.  When its input ends, whoever
 * asked is gone, and what runs for him is killed.
 *
 * A frame is the number of a stream (the client's choice, used once), a kind and a length, each
 * four bytes, the highest first, and then the data.  From the client:
 *   r  run: NUL-ended fields INPUT NENV ENV... ARGV...; INPUT is 1 when input will follow
 *   c  connect to the unix socket at PATH
 *   g  get the file at PATH
 *   w  write: NUL-ended fields PART MODE PATH; what is put in goes to PART, which then becomes PATH
 *   s  stir what comes into the kernel's random numbers, which then begin anew
 *   i  input of the stream; empty at its end
 *   k  kill what runs and forget the stream; nothing more is heard of it
 * To the client:
 *   h  hello, once
 *   p  a command's pid, four bytes
 *   o  output, e  error output
 *   a  so many bytes of input, four bytes, have been passed on: there is room for as many more
 *   x  the end, four bytes: a command's exit status or minus the signal's number, else an errno
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEADER 12
#define MAX_FRAME (256 * 1024)
#define MAX_FIELDS 16384
#define MAX_STREAMS 512
#define CHUNK (32 * 1024)

enum { COMMAND, SOCKET, READ_FILE, WRITE_FILE };

struct stream {
    uint32_t id;
    int what;
    pid_t pid;        /* of a command that has not been reaped */
    int in, out, err; /* our ends; -1 when closed */
    int told;         /* the end was told, or nobody wants to hear: output is thrown away */
    int no_more;      /* the client's input has ended */
    char *queue;      /* input that the other side had no room for */
    size_t queued;
    char *part, *path; /* of a file that is written */
};

static struct stream *streams[MAX_STREAMS];
static int stream_count;
static sigset_t no_signals;
static struct rlimit login_files;
#define LOGIN_FILES 1024

static struct stream *find(uint32_t id) {
    for (int i = 0; i < stream_count; i++)
        if (streams[i]->id == id) return streams[i];
    return NULL;
}

static void shut(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void end_command(struct stream *s) {
    if (s->what != COMMAND || !s->pid) return;
    kill(s->pid, SIGKILL); /* it may not lead its group yet, and then has no children */
    kill(-s->pid, SIGKILL);
}

/* Whoever asked is gone: so is what he asked for, and so are we. */
__attribute__((noreturn)) static void hang_up(void) {
    for (int i = 0; i < stream_count; i++) {
        if (!streams[i]->told) end_command(streams[i]);
        if (streams[i]->part) unlink(streams[i]->part);
    }
    _exit(0);
}

static void write_all(const char *data, size_t size) {
    while (size) {
        ssize_t n = write(1, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) hang_up();
        data += n;
        size -= n;
    }
}

static void put32(char *at, uint32_t n) {
    at[0] = n >> 24, at[1] = n >> 16, at[2] = n >> 8, at[3] = n;
}

static uint32_t get32(const char *at) {
    const unsigned char *u = (const unsigned char *)at;
    return (uint32_t)u[0] << 24 | u[1] << 16 | u[2] << 8 | u[3];
}

static void tell(uint32_t id, char kind, const char *data, size_t size) {
    static char frame[HEADER + CHUNK];
    put32(frame, id);
    put32(frame + 4, kind);
    put32(frame + 8, size);
    memcpy(frame + HEADER, data, size);
    write_all(frame, HEADER + size);
}

static void tell_number(uint32_t id, char kind, int32_t number) {
    char data[4];
    put32(data, number);
    tell(id, kind, data, 4);
}

static void tell_end(struct stream *s, int number) {
    if (!s->told) tell_number(s->id, 'x', number);
    s->told = 1;
}

static struct stream *new_stream(uint32_t id, int what) {
    struct stream *s = stream_count < MAX_STREAMS ? calloc(1, sizeof *s) : NULL;
    if (!s) {
        tell_number(id, 'x', EAGAIN);
        return NULL;
    }
    *s = (struct stream){.id = id, .what = what, .in = -1, .out = -1, .err = -1};
    return streams[stream_count++] = s;
}

static void forget(struct stream *s) {
    shut(&s->in);
    shut(&s->out);
    shut(&s->err);
    if (s->part) unlink(s->part);
    free(s->part);
    free(s->path);
    free(s->queue);
    for (int i = 0; i < stream_count; i++)
        if (streams[i] == s) streams[i] = streams[--stream_count];
    free(s);
}

/* True if nothing of the stream is left to come. */
static int finished(struct stream *s) {
    return s->told && !s->pid && s->out < 0 && s->err < 0;
}

/* Passes output on, at most `most` bytes; what nobody wants is thrown away. */
static void pass(struct stream *s, int *fd, char kind, int most) {
    char data[CHUNK];
    while (*fd >= 0 && most > 0) {
        ssize_t n = read(*fd, data, most < CHUNK ? most : CHUNK);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            int error = n < 0 ? errno : 0;
            shut(fd);
            if (s->what != COMMAND) { /* the end of a file, or of a connection */
                shut(&s->in);
                tell_end(s, s->what == READ_FILE ? error : 0);
            }
            return;
        }
        if (!s->told) tell(s->id, kind, data, n);
        most -= n;
    }
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < stream_count; i++) {
            struct stream *s = streams[i];
            if (s->what != COMMAND || s->pid != pid) continue;
            int there = 0;
            s->pid = 0;
            /* What it wrote comes before its end; what its children still write does not count. */
            if (s->out >= 0 && ioctl(s->out, FIONREAD, &there) == 0) pass(s, &s->out, 'o', there);
            if (s->err >= 0 && ioctl(s->err, FIONREAD, &there) == 0) pass(s, &s->err, 'e', there);
            shut(&s->in);
            tell_end(s, WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
            break;
        }
}

/* Ends the child's life as a copy of the agent: own session, own signals, then the program. */
__attribute__((noreturn)) static void become(const int files[3], char **env, char **argv) {
    const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    setsid();
    for (int i = 0; i < 3; i++)
        if (dup2(files[i], i) < 0) _exit(126);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &no_signals, NULL);
    setrlimit(RLIMIT_NOFILE, &login_files);
    if (chdir("/")) _exit(126);
    for (char **e = env; *e; e++)
        if (!strncmp(*e, "PATH=", 5)) path = *e + 5;
    setenv("PATH", path, 1); /* execvpe searches the caller's PATH, not the one in env */
    execvpe(argv[0], argv, env);
    int missing = errno == ENOENT;
    dprintf(2, "testbed-agent: %s: %s\n", argv[0], strerror(errno));
    _exit(missing ? 127 : 126);
}

/* Splits NUL-ended fields in place; -1 when there are too many, or the last has no end. */
static int split(char *data, size_t size, char **field, int most) {
    int n = 0;
    if (!size || data[size - 1]) return -1;
    for (char *p = data; p < data + size; p += strlen(p) + 1) {
        if (n == most) return -1;
        field[n++] = p;
    }
    return n;
}

static void request_run(uint32_t id, char *data, size_t size) {
    static char *field[MAX_FIELDS + 1], *env[MAX_FIELDS + 1];
    int in[2], out[2], err[2];
    int n = split(data, size, field, MAX_FIELDS);
    int count = n > 2 ? atoi(field[1]) : -1;
    if (count < 0 || count + 2 >= n) {
        tell_number(id, 'x', E2BIG);
        return;
    }
    memcpy(env, field + 2, count * sizeof *env);
    env[count] = field[n] = NULL;
    struct stream *s = new_stream(id, COMMAND);
    if (!s) return;
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) hang_up();
    int files[3] = {field[0][0] == '1' ? in[0] : null, out[1], err[1]};
    s->pid = fork();
    if (s->pid == 0) become(files, env, field + 2 + count);
    int failure = s->pid < 0 ? errno : 0;
    close(null), close(in[0]), close(out[1]), close(err[1]);
    s->in = in[1], s->out = out[0], s->err = err[0];
    fcntl(s->in, F_SETFL, O_NONBLOCK);
    fcntl(s->out, F_SETFL, O_NONBLOCK);
    fcntl(s->err, F_SETFL, O_NONBLOCK);
    if (failure) {
        s->pid = 0;
        tell_end(s, failure);
        forget(s);
    } else tell_number(id, 'p', s->pid);
}

static void request_connect(uint32_t id, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stream *s = new_stream(id, SOCKET);
    if (!s) return;
    size_t length = strlen(path);
    int error = length < sizeof address.sun_path ? 0 : ENAMETOOLONG;
    if (!error) {
        memcpy(address.sun_path, path, length);
        s->out = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (s->out < 0 || connect(s->out, (struct sockaddr *)&address, sizeof address)) error = errno;
    }
    if (error) {
        tell_end(s, error);
        forget(s);
        return;
    }
    s->in = fcntl(s->out, F_DUPFD_CLOEXEC, 3);
}

static void request_get(uint32_t id, const char *path) {
    struct stream *s = new_stream(id, READ_FILE);
    if (!s) return;
    s->out = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (s->out < 0) {
        tell_end(s, errno);
        forget(s);
    }
}

static void make_parents(char *path) {
    for (char *p = path + 1; *p; p++)
        if (*p == '/') {
            *p = 0;
            mkdir(path, 0755); /* the open that follows tells if this did not work */
            *p = '/';
        }
}

static void request_write(uint32_t id, char *data, size_t size) {
    char *field[3];
    struct stream *s = new_stream(id, WRITE_FILE);
    if (!s) return;
    if (split(data, size, field, 3) != 3) errno = EINVAL;
    else {
        make_parents(field[0]);
        s->in = open(field[0], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    }
    if (s->in < 0) {
        tell_end(s, errno);
        forget(s);
        return;
    }
    fchmod(s->in, atoi(field[1]));
    s->part = strdup(field[0]);
    s->path = strdup(field[2]);
}

static void end_write(struct stream *s, int error) {
    shut(&s->in);
    if (!error && rename(s->part, s->path)) error = errno;
    if (!error) {
        free(s->part);
        s->part = NULL; /* it is PATH now, and stays */
    }
    tell_end(s, error);
}

/* What is written counts only once the kernel draws a new key, which it may not do for a minute. */
static void request_stir(uint32_t id, const char *data, size_t size) {
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    int done = fd >= 0 && write(fd, data, size) == (ssize_t)size && ioctl(fd, RNDRESEEDCRNG) == 0;
    tell_number(id, 'x', done ? 0 : errno);
    shut(&fd);
}

/* Passes on what is queued, as far as there is room. */
static void feed(struct stream *s) {
    size_t done = 0;
    int error = 0;
    while (s->in >= 0 && done < s->queued) {
        ssize_t n = write(s->in, s->queue + done, s->queued - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            error = errno;
            shut(&s->in);
            break;
        }
        done += n;
    }
    if (s->in < 0) done = s->queued; /* nobody reads it any more */
    memmove(s->queue, s->queue + done, s->queued - done);
    s->queued -= done;
    if (done && !s->told) tell_number(s->id, 'a', done);
    if (s->what == WRITE_FILE && !s->told && (error || (s->no_more && !s->queued))) end_write(s, error);
    else if (s->no_more && !s->queued && s->in >= 0) {
        if (s->what == SOCKET) shutdown(s->in, SHUT_WR);
        shut(&s->in);
    }
}

static void request_input(struct stream *s, const char *data, size_t size) {
    if (!size) s->no_more = 1;
    else {
        char *more = realloc(s->queue, s->queued + size);
        if (!more) hang_up();
        s->queue = more;
        memcpy(s->queue + s->queued, data, size);
        s->queued += size;
    }
    feed(s);
}

static void serve(uint32_t id, char kind, char *data, size_t size) {
    struct stream *s = find(id);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%.*s", (int)size, data);
    if (kind == 'r') request_run(id, data, size);
    else if (kind == 'c') request_connect(id, path);
    else if (kind == 'g') request_get(id, path);
    else if (kind == 'w') request_write(id, data, size);
    else if (kind == 's') request_stir(id, data, size);
    else if (kind == 'i' && s) request_input(s, data, size);
    else if (kind == 'k' && s) {
        if (!s->told) end_command(s);
        s->told = 1;
        shut(&s->in);
        shut(&s->out);
        shut(&s->err);
    }
}

static void receive(void) {
    static char data[HEADER + MAX_FRAME];
    static size_t have;
    ssize_t n = read(0, data + have, sizeof data - have);
    if (n < 0 && errno == EINTR) return;
    if (n <= 0) hang_up();
    have += n;
    size_t at = 0;
    while (have - at >= HEADER) {
        size_t size = get32(data + at + 8);
        if (size > MAX_FRAME) hang_up();
        if (have - at < HEADER + size) break;
        serve(get32(data + at), (char)get32(data + at + 4), data + at + HEADER, size);
        at += HEADER + size;
    }
    memmove(data, data + at, have - at);
    have -= at;
}

int main(void) {
    static struct pollfd polled[2 + 3 * MAX_STREAMS];
    static struct stream *listened[MAX_STREAMS];
    struct rlimit files;
    sigset_t wanted;
    umask(022);
    signal(SIGPIPE, SIG_IGN);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        login_files = files; /* a command has what a login has, as programs that use select(2) need */
        if (login_files.rlim_cur > LOGIN_FILES) login_files.rlim_cur = LOGIN_FILES; /* of sshd's own */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    sigemptyset(&no_signals);
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigprocmask(SIG_SETMASK, &wanted, NULL);
    int signals = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0) return 1;
    tell(0, 'h', "", 0);
    for (;;) {
        int count = stream_count;
        polled[0] = (struct pollfd){0, POLLIN, 0};
        polled[1] = (struct pollfd){signals, POLLIN, 0};
        for (int i = 0; i < count; i++) {
            struct stream *s = listened[i] = streams[i];
            polled[2 + 3 * i] = (struct pollfd){s->out, POLLIN, 0};
            polled[3 + 3 * i] = (struct pollfd){s->err, POLLIN, 0};
            polled[4 + 3 * i] = (struct pollfd){s->queued ? s->in : -1, POLLOUT, 0};
        }
        if (poll(polled, 2 + 3 * count, -1) < 0 && errno != EINTR) hang_up();
        for (int i = 0; i < count; i++) {
            struct stream *s = listened[i];
            if (polled[2 + 3 * i].revents) pass(s, &s->out, 'o', CHUNK);
            if (polled[3 + 3 * i].revents) pass(s, &s->err, 'e', CHUNK);
            if (polled[4 + 3 * i].revents) feed(s);
        }
        if (polled[1].revents) {
            struct signalfd_siginfo info;
            while (read(signals, &info, sizeof info) == sizeof info) continue;
            reap();
        }
        for (int i = stream_count - 1; i >= 0; i--) /* backwards: forgetting moves the last one here */
            if (finished(streams[i])) forget(streams[i]);
        if (polled[0].revents) receive();
    }
}
