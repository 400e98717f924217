/* testbed-agent: runs commands and moves files on a machine at the end of a stream of bytes.
 *
 *   testbed-agent [PID]
 *
 * One runs for each connection, started by sshd for example.  It reads frames from its standard
 * input and writes frames to its standard output, so that any number of commands share one channel:
 * a channel each would cost a process of sshd's and a shell, and a server allows ten.  When its input
 * ends, whoever asked is gone, and what runs for him is killed.
 *
 * With the PID of a container's process it first enters that container: its namespaces, its root and
 * its cgroups.  So it needs no file in the container, and no engine that answers.
 *
 * A frame is the number of a stream (the client's choice, used once), a kind and a length, each
 * four bytes, the highest first, and then the data.  From the client:
 *   r  run: NUL-ended fields INPUT NENV ENV... ARGV...; INPUT is 1 when input will follow
 *   t  the same on a new terminal; the first field is its size and the PID of a process, "ROWS COLUMNS PID":
 *      it is made in the /dev/pts that the process sees, if it sees one; input is typed on it
 *   z  the terminal's new size, ROWS COLUMNS
 *   q  one message for testbed-init; each message of its answer is output
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
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEADER 12
#define MAX_FRAME (256 * 1024)
#define MAX_FIELDS 16384
#define MAX_STREAMS 512
#define CHUNK (32 * 1024)
#define TERMINAL_REST (256 * 1024) /* more than the kernel keeps of a terminal's output */
#define INIT_SOCKET "/run/testbed/init.sock" /* SOCKET_PATH of init.h */
#define NR_PIDFD_OPEN 434

enum { COMMAND, SOCKET, READ_FILE, WRITE_FILE };

struct stream {
    uint32_t id;
    int what;
    pid_t pid;        /* of a command that has not been reaped */
    int in, out, err; /* our ends; -1 when closed */
    int terminal;     /* in and out are the master of a terminal */
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

static int never_blocks; /* standard output is a pipe, which nobody else writes to */

/* Waits for room for PIPE_BUF bytes (pipe(7)).  An engine may read nothing more and close nothing
 * when its client is gone: our input alone tells it then. */
static void wait_for_room(void) {
    struct pollfd ends[] = {{1, POLLOUT, 0}, {0, POLLRDHUP, 0}};
    while (poll(ends, 2, -1) < 0) /* no revents are set */
        if (errno != EINTR) hang_up();
    if (!ends[0].revents) hang_up();
}

static void write_all(const char *data, size_t size) {
    while (size) {
        if (!never_blocks) wait_for_room();
        ssize_t n = write(1, data, never_blocks || size < PIPE_BUF ? size : PIPE_BUF);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            wait_for_room();
            continue;
        }
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
            if (s->terminal) { /* FIONREAD leaves out what is on its way from the terminal */
                pass(s, &s->out, 'o', TERMINAL_REST);
                shut(&s->out); /* children that stay on it are hung up */
            }
            if (s->out >= 0 && ioctl(s->out, FIONREAD, &there) == 0) pass(s, &s->out, 'o', there);
            if (s->err >= 0 && ioctl(s->err, FIONREAD, &there) == 0) pass(s, &s->err, 'e', there);
            shut(&s->in);
            tell_end(s, WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
            break;
        }
}

/* Ends the child's life as a copy of the agent: own session, own signals, then the program. */
__attribute__((noreturn)) static void become(const int files[3], int terminal, char **env, char **argv) {
    const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    setsid();
    for (int i = 0; i < 3; i++)
        if (dup2(files[i], i) < 0) _exit(126);
    if (terminal) ioctl(0, TIOCSCTTY, 0);
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

static void open_pipes(struct stream *s, int input, int files[3]) {
    int in[2], out[2], err[2];
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) hang_up();
    if (!input && null < 0) { /* a container need not have one: no input is an input that has ended */
        shut(&in[1]);
        input = 1;
    }
    files[0] = input ? in[0] : null, files[1] = out[1], files[2] = err[1];
    shut(input ? &null : &in[0]);
    s->in = in[1], s->out = out[0], s->err = err[0];
    fcntl(s->in, F_SETFL, O_NONBLOCK);
    fcntl(s->out, F_SETFL, O_NONBLOCK);
    fcntl(s->err, F_SETFL, O_NONBLOCK);
}

static void set_size(int master, const char *text) {
    struct winsize size = {0};
    if (sscanf(text, "%hu %hu", &size.ws_row, &size.ws_col) == 2) ioctl(master, TIOCSWINSZ, &size);
}

/* Opens a new terminal; returns an errno. */
static int open_terminal(struct stream *s, const char *size, int files[3]) {
    const int flags = O_RDWR | O_NOCTTY | O_CLOEXEC;
    int unlocked = 0, pid = 1;
    char place[64];
    s->terminal = 1;
    sscanf(size, "%*u %*u %d", &pid);
    snprintf(place, sizeof place, "/proc/%d/root/dev/pts/ptmx", pid);
    s->out = pid == 1 ? -1 : open(place, flags | O_NONBLOCK);
    if (s->out < 0) s->out = open("/dev/ptmx", flags | O_NONBLOCK);
    if (s->out < 0) s->out = open("/dev/pts/ptmx", flags | O_NONBLOCK);
    if (s->out < 0 || ioctl(s->out, TIOCSPTLCK, &unlocked)) return errno;
    files[0] = files[1] = files[2] = ioctl(s->out, TIOCGPTPEER, flags);
    if (files[0] < 0) return errno;
    set_size(s->out, size);
    s->in = fcntl(s->out, F_DUPFD_CLOEXEC, 3);
    return 0;
}

static void request_run(uint32_t id, char *data, size_t size, int terminal) {
    static char *field[MAX_FIELDS + 1], *env[MAX_FIELDS + 1];
    int files[3], failure = 0;
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
    if (terminal) failure = open_terminal(s, field[0], files);
    else open_pipes(s, field[0][0] == '1', files);
    if (!failure) {
        s->pid = fork();
        if (s->pid == 0) become(files, terminal, env, field + 2 + count);
        if (s->pid < 0) failure = errno;
        for (int i = 0; i < (terminal ? 1 : 3); i++) close(files[i]);
    }
    if (failure) {
        s->pid = 0;
        tell_end(s, failure);
        forget(s);
    } else tell_number(id, 'p', s->pid);
}

/* Connects a stream to a unix socket; tells its end and forgets it if that fails. */
static struct stream *connected(uint32_t id, int type, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stream *s = new_stream(id, SOCKET);
    if (!s) return NULL;
    size_t length = strlen(path);
    int error = length < sizeof address.sun_path ? 0 : ENAMETOOLONG;
    if (!error) {
        memcpy(address.sun_path, path, length);
        s->out = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (s->out < 0 || connect(s->out, (struct sockaddr *)&address, sizeof address)) error = errno;
    }
    if (!error) return s;
    tell_end(s, error);
    forget(s);
    return NULL;
}

static void request_connect(uint32_t id, const char *path) {
    struct stream *s = connected(id, SOCK_STREAM, path);
    if (s) s->in = fcntl(s->out, F_DUPFD_CLOEXEC, 3);
}

static void request_ask(uint32_t id, const char *data, size_t size) {
    int room = 2 * MAX_FRAME; /* a message is sent whole or not at all */
    struct stream *s = connected(id, SOCK_SEQPACKET, INIT_SOCKET);
    if (!s) return;
    setsockopt(s->out, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    if (send(s->out, data, size, MSG_NOSIGNAL) >= 0) return;
    tell_end(s, errno);
    forget(s);
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

/* Writes the content of a file over that of another, which stays the same file; returns an errno. */
static int overwrite(const char *from, const char *to) {
    char data[CHUNK];
    ssize_t n = 0;
    int error = 0;
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_TRUNC | O_CLOEXEC | O_NOCTTY);
    if (in < 0 || out < 0) error = errno;
    while (!error && (n = read(in, data, sizeof data)) > 0)
        for (ssize_t done = 0, m; done < n && !error; done += m)
            if ((m = write(out, data + done, n - done)) < 0) error = errno, m = 0;
    if (!error && n < 0) error = errno;
    shut(&in);
    shut(&out);
    return error;
}

static void end_write(struct stream *s, int error) {
    struct stat st;
    shut(&s->in);
    if (!error && rename(s->part, s->path)) error = errno;
    /* Engines mount files of their own on /etc/hosts and others, and those cannot be replaced. */
    if (error == EBUSY && stat(s->path, &st) == 0 && S_ISREG(st.st_mode)) {
        tell_end(s, overwrite(s->part, s->path));
        return; /* the part goes with the stream */
    }
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
    if (kind == 'r') request_run(id, data, size, 0);
    else if (kind == 't') request_run(id, data, size, 1);
    else if (kind == 'z' && s && s->terminal && s->in >= 0) set_size(s->in, path);
    else if (kind == 'q') request_ask(id, data, size);
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

__attribute__((noreturn)) static void refuse(const char *what) {
    fprintf(stderr, "testbed-agent: %s: %s\n", what, strerror(errno));
    _exit(1);
}

/* Joins the cgroups of a process, as far as they are mounted here and let themselves be joined: what
 * runs in a container is then counted and limited with it. */
static void join_cgroups(const char *pid) {
    char line[PATH_MAX], place[PATH_MAX + 64];
    snprintf(place, sizeof place, "/proc/%s/cgroup", pid);
    FILE *list = fopen(place, "re");
    while (list && fgets(line, sizeof line, list)) { /* NUMBER:CONTROLLERS:PATH, cgroups(7) */
        line[strcspn(line, "\n")] = 0;
        char *kind = strchr(line, ':'), *path = kind ? strchr(++kind, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        if (!strncmp(kind, "name=", 5)) kind += 5;
        snprintf(place, sizeof place, "/sys/fs/cgroup/%s%s/cgroup.procs", kind, path);
        int fd = open(place, O_WRONLY | O_CLOEXEC);
        if (fd < 0 && !*kind) { /* version 2 beside version 1 */
            snprintf(place, sizeof place, "/sys/fs/cgroup/unified%s/cgroup.procs", path);
            fd = open(place, O_WRONLY | O_CLOEXEC);
        }
        if (fd >= 0 && write(fd, "0", 1) < 0) errno = 0; /* as documented above */
        shut(&fd);
    }
    if (list) fclose(list);
}

/* Enters the container of a process.  Our first process stays outside and waits: whoever started it
 * sees the end, and it alone, so that the one inside can end what it runs. */
static void enter(const char *pid) {
    char place[64];
    struct stat ours, theirs;
    int status, process = syscall(NR_PIDFD_OPEN, atoi(pid), 0);
    if (process < 0) refuse(pid);
    snprintf(place, sizeof place, "/proc/%s/root", pid);
    int root = open(place, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) refuse(place);
    snprintf(place, sizeof place, "/proc/%s/ns/user", pid);
    if (stat("/proc/self/ns/user", &ours) || stat(place, &theirs)) refuse(place);
    int user = ours.st_ino == theirs.st_ino ? 0 : CLONE_NEWUSER; /* setns(2): not one's own */
    join_cgroups(pid);
    prctl(PR_SET_DUMPABLE, 0); /* nobody in there gets hold of this program, which is not the container's */
    if (setns(process, user | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP))
        refuse("cannot enter the container");
    if (fchdir(root) || chroot(".")) refuse("cannot enter the container's root");
    if (user && (setgid(0) || setuid(0))) refuse("cannot become root of the container");
    close(root);
    close(process);
    pid_t child = fork();
    if (child < 0) refuse("fork");
    if (child == 0) {
        setsid();
        return;
    }
    close(0);
    close(1);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

int main(int argc, char **argv) {
    static struct pollfd polled[2 + 3 * MAX_STREAMS];
    static struct stream *listened[MAX_STREAMS];
    struct rlimit files;
    sigset_t wanted;
    if (argc > 1) enter(argv[1]);
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
    struct stat out;
    never_blocks = fstat(1, &out) == 0 && S_ISFIFO(out.st_mode) && fcntl(1, F_SETFL, O_NONBLOCK) == 0;
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
