/* systemctl, service and journalctl of a namespace node.
 *
 * They show and control the services of the node's pid 1, as systemctl(1), service(8) and
 * journalctl(1) do for the services of systemd.  Unsupported options are errors.  A service
 * has two names: its own, and that of its unit in the distribution's package.  A file in
 * /run/testbed/units maps the second to the first.  There are no unit files.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "init.h"

#define MAX_NAMES 64
#define SUFFIX ".service"
#define START_MS 90000 /* DefaultTimeoutStartSec= and DefaultTimeoutStopSec= of systemd */
#define STOP_MS "90000"
#define FOLLOW_MS 100
/* Exit statuses: systemctl(1), "Exit status", after LSB, "Init Script Actions". */
enum { FAILED = 1, NOT_ACTIVE = 3, UNKNOWN = 4, NOT_FOUND = 5 };

static const char *called;

__attribute__((noreturn, format(printf, 2, 3))) static void quit(int status, const char *format, ...) {
    va_list args;
    fflush(stdout);
    fprintf(stderr, "%s: ", called);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(status);
}

/* ------------------------------------------------------------------ services of pid 1 */

struct unit {
    char service[64], name[64]; /* the service and its unit */
    char state[16];             /* starting, ready or dead */
    int pid, status;
    long long age_ms; /* time since the last change of state */
    int notify, nenv;
    char **env, **argv;
};

static struct unit units[MAX_SERVICES];
static int unit_count;

/* Send a request to pid 1 and return the length of the answer, or -1 after the timeout. The
 * fields of the request end with a NULL. */
static ssize_t ask(char *answer, size_t room, int timeout, ...) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET_PATH};
    char request[512];
    size_t size = 0;
    va_list args;
    va_start(args, timeout);
    for (const char *field; (field = va_arg(args, const char *));) {
        size_t length = strlen(field) + 1;
        if (size + length > sizeof request) quit(FAILED, "%s: name too long", field);
        memcpy(request + size, field, length);
        size += length;
    }
    va_end(args);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        if (errno == EACCES) quit(UNKNOWN, "only root can ask the node's pid 1 for its services");
        quit(FAILED, "the node's pid 1 does not answer at %s: %s", SOCKET_PATH, strerror(errno));
    }
    struct pollfd polled = {fd, POLLIN, 0};
    if (send(fd, request, size, MSG_NOSIGNAL) < 0) quit(FAILED, "pid 1: %s", strerror(errno));
    int ready = poll(&polled, 1, timeout);
    ssize_t got = ready > 0 ? recv(fd, answer, room - 1, 0) : -1;
    if (ready > 0 && got <= 0) quit(FAILED, "the node's pid 1 did not answer");
    if (got >= 0) answer[got] = 0;
    close(fd);
    return got;
}

/* Read the state of a service, and the request that started it, which follows the first line. */
static void learn(struct unit *u) {
    char *text = malloc(MAX_MESSAGE + 512);
    ssize_t size = text ? ask(text, MAX_MESSAGE + 512, START_MS, "tell", u->service, NULL) : -1;
    char *line = size < 0 ? NULL : strchr(text, '\n');
    if (!line || sscanf(text, "ok %15s %d %d %lld", u->state, &u->pid, &u->status, &u->age_ms) != 4)
        quit(FAILED, "pid 1 did not return the state of %s: %s", u->service, size < 0 ? "no answer" : text);
    char **field = calloc(MAX_FIELDS + 1, sizeof *field), *end = text + size;
    int n = 0;
    for (char *p = line + 1; field && p < end && n < MAX_FIELDS; p += strlen(p) + 1) field[n++] = p;
    if (n < 6) quit(FAILED, "pid 1 did not return the command of %s", u->service);
    u->notify = !strcmp(field[3], "1");
    u->nenv = atoi(field[4]);
    u->env = field + 5;
    u->argv = field + 5 + u->nenv;
}

static void read_units(void) {
    static char list[MAX_SERVICES * 256];
    char *save = NULL;
    ask(list, sizeof list, START_MS, "list", NULL);
    strtok_r(list, "\n", &save);
    for (char *line; (line = strtok_r(NULL, "\n", &save)) && unit_count < MAX_SERVICES;) {
        struct unit *u = &units[unit_count++];
        sscanf(line, "%63s", u->service);
        strcpy(u->name, u->service);
        learn(u);
    }
    DIR *folder = opendir(UNITS_FOLDER);
    if (!folder) return;
    for (struct dirent *entry; (entry = readdir(folder));) {
        char service[64] = "";
        int fd = openat(dirfd(folder), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && read(fd, service, sizeof service - 1) > 0)
            for (int i = 0; i < unit_count; i++)
                if (!strcmp(units[i].service, service) && strlen(entry->d_name) < sizeof units->name)
                    strcpy(units[i].name, entry->d_name);
        if (fd >= 0) close(fd);
    }
    closedir(folder);
}

static const char *bare(const char *name) {
    static char copy[4][256];
    static int at;
    char *mine = copy[at++ % 4];
    snprintf(mine, sizeof *copy, "%s", name);
    size_t length = strlen(mine), suffix = strlen(SUFFIX);
    if (length > suffix && !strcmp(mine + length - suffix, SUFFIX)) mine[length - suffix] = 0;
    return mine;
}

static struct unit *find_unit(const char *name) {
    const char *wanted = bare(name);
    for (int i = 0; i < unit_count; i++)
        if (!strcmp(units[i].name, wanted) || !strcmp(units[i].service, wanted)) return &units[i];
    return NULL;
}

/* Find the units that match a name or pattern; return their number. */
static int match(const char *pattern, struct unit **found) {
    struct unit *one = find_unit(pattern);
    int count = 0;
    if (one) found[count++] = one;
    else if (strpbrk(pattern, "*?["))
        for (int i = 0; i < unit_count; i++)
            if (!fnmatch(bare(pattern), units[i].name, 0) || !fnmatch(bare(pattern), units[i].service, 0))
                found[count++] = &units[i];
    return count;
}

static const char *known(void) {
    static char text[4096];
    size_t used = 0;
    for (int i = 0; i < unit_count; i++)
        used += snprintf(text + used, sizeof text - used, "%s%s", i ? ", " : "", units[i].name);
    return unit_count ? text : "none";
}

/* These signals are a clean exit (systemd.service(5), SuccessExitStatus=). */
static int ended_well(const struct unit *u) {
    return u->status == 0 || u->status == -SIGHUP || u->status == -SIGINT || u->status == -SIGTERM ||
           u->status == -SIGPIPE;
}

static int is_dead(const struct unit *u) { return !strcmp(u->state, "dead"); }

static const char *active(const struct unit *u) {
    if (is_dead(u)) return ended_well(u) ? "inactive" : "failed";
    return strcmp(u->state, "ready") ? "activating" : "active";
}

static const char *sub(const struct unit *u) {
    if (is_dead(u)) return ended_well(u) ? "dead" : "failed";
    return strcmp(u->state, "ready") ? "start" : "running";
}

/* ------------------------------------------------------------------ options */

struct options {
    int all, quiet, plain, legend, value, follow, now, lines, reverse, signal, prefix;
    const char *properties, *type, *state;
    const char *name[MAX_NAMES];
    int names;
};

static struct options options = {.legend = 1, .lines = -1, .signal = SIGTERM, .prefix = 1};

/* Return the value of an option: after "=", after the letter, or the next argument. */
static const char *value_of(int argc, char **argv, int *i, const char *inside) {
    if (inside && *inside) return inside;
    if (*i + 1 >= argc) quit(FAILED, "option %s requires a value", argv[*i]);
    return argv[++*i];
}

static int number(const char *text, const char *option) {
    char *end;
    long n = strtol(text, &end, 10);
    if (!strcmp(text, "all")) return -1;
    if (*end || !*text || n < 0) quit(FAILED, "%s requires a number of lines, not %s", option, text);
    return (int)n;
}

static int signal_of(const char *text) {
    int n = atoi(text);
    if (n > 0 && n < NSIG) return n;
    if (!strncasecmp(text, "SIG", 3)) text += 3;
    for (n = 1; n < NSIG; n++) {
        const char *name = sigabbrev_np(n);
        if (name && !strcasecmp(name, text)) return n;
    }
    quit(FAILED, "unknown signal %s", text);
}

static int one_of(const char *word, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(*list, word)) return 1;
    return 0;
}

/* Tell whether a list of words with commas contains a word. */
static int has_word(const char *list, const char *word) {
    size_t length = strlen(word);
    for (const char *at = list; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (!strncmp(at, word, length) && (!at[length] || at[length] == ',')) return 1;
    return 0;
}

static void add_property(const char *text) {
    char *joined = NULL;
    if (asprintf(&joined, "%s,%s", options.properties ? options.properties : "", text) < 0) quit(FAILED, "no memory");
    options.properties = joined;
}

/* ------------------------------------------------------------------ the log */

struct log {
    const char *label;
    int fd;
    char *rest; /* an incomplete last line */
    size_t kept;
};

static void show_line(const struct log *log, const char *line, size_t size) {
    if (log->label) printf("%s: ", log->label);
    fwrite(line, 1, size, stdout);
    putchar('\n');
}

/* Print the lines that were written since the last call. */
static void show_new(struct log *log) {
    char data[65536];
    ssize_t size;
    while (log->fd >= 0 && (size = read(log->fd, data, sizeof data)) > 0) {
        log->rest = realloc(log->rest, log->kept + size);
        if (!log->rest) quit(FAILED, "no memory");
        memcpy(log->rest + log->kept, data, size);
        log->kept += size;
        char *begin = log->rest, *end = log->rest + log->kept;
        for (char *at; (at = memchr(begin, '\n', end - begin)); begin = at + 1) show_line(log, begin, at - begin);
        log->kept = end - begin;
        memmove(log->rest, begin, log->kept);
    }
}

/* Seek to the beginning of the last lines of a file. */
static void seek_lines(int fd, int lines) {
    struct stat st;
    if (fd < 0 || lines < 0 || fstat(fd, &st)) return;
    off_t at = st.st_size;
    char byte;
    int seen = 0;
    while (at > 0) {
        if (pread(fd, &byte, 1, at - 1) != 1) break;
        if (byte == '\n' && at != st.st_size && ++seen == lines) break;
        at--;
    }
    lseek(fd, lines ? at : st.st_size, SEEK_SET);
}

static void show_reversed(struct log *log) {
    struct stat st;
    if (log->fd < 0 || fstat(log->fd, &st)) return;
    off_t from = lseek(log->fd, 0, SEEK_CUR);
    size_t size = st.st_size > from ? st.st_size - from : 0;
    char *text = malloc(size + 1);
    if (!text || read(log->fd, text, size) != (ssize_t)size) quit(FAILED, "the log of %s: %s", log->label, strerror(errno));
    size_t end = size && text[size - 1] == '\n' ? size - 1 : size;
    while (size) {
        char *newline = memrchr(text, '\n', end);
        char *begin = newline ? newline + 1 : text;
        show_line(log, begin, text + end - begin);
        if (!newline) break;
        end = newline - text;
    }
    free(text);
}

static void open_log(struct log *log, const struct unit *u, int label) {
    char path[256];
    snprintf(path, sizeof path, LOG_FOLDER "%s.log", u->service);
    log->label = label ? u->name : NULL;
    log->fd = open(path, O_RDONLY | O_CLOEXEC);
    seek_lines(log->fd, options.lines);
}

static void show_rest(const struct log *log) {
    if (log->kept) show_line(log, log->rest, log->kept);
}

static int journalctl(int argc, char **argv) {
    static const char *const meant[] = {"--no-pager", "--pager-end", "--full", "--all", "--quiet",
                                        "--catalog", "--no-hostname", "--system", "--merge", "--boot", "--boot=0", NULL};
    struct log logs[MAX_SERVICES] = {0};
    struct unit *found[MAX_SERVICES], *wanted[MAX_SERVICES];
    int count = 0, tail = 1;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i], *equals = strchr(word, '=');
        if (!strncmp(word, "--unit", 6) && (!word[6] || equals == word + 6)) {
            if (options.names == MAX_NAMES) quit(FAILED, "more than %d units", MAX_NAMES);
            options.name[options.names++] = value_of(argc, argv, &i, equals ? equals + 1 : NULL);
        } else if (!strncmp(word, "--lines", 7) && (!word[7] || equals == word + 7)) {
            options.lines = equals ? number(equals + 1, word) : 10;
            if (!equals && i + 1 < argc && (argv[i + 1][0] != '-')) options.lines = number(argv[++i], word);
        } else if (!strncmp(word, "--output", 8) && (!word[8] || equals == word + 8)) {
            const char *format = value_of(argc, argv, &i, equals ? equals + 1 : NULL);
            if (strcmp(format, "cat") && strcmp(format, "short"))
                quit(FAILED, "output format %s is not supported: the log has the services' output without changes", format);
            options.prefix = strcmp(format, "cat") != 0;
        } else if (!strcmp(word, "--follow")) options.follow = 1;
        else if (!strcmp(word, "--no-tail")) tail = 0;
        else if (!strcmp(word, "--reverse")) options.reverse = 1;
        else if (one_of(word, meant)) continue;
        else if (word[0] == '-' && word[1] && word[1] != '-') {
            for (const char *p = word + 1; *p; p++) {
                if (*p == 'f') options.follow = 1;
                else if (*p == 'r') options.reverse = 1;
                else if (*p == 'e') options.lines = options.lines < 0 ? 1000 : options.lines;
                else if (*p == 'b') {
                    const char *boot = p[1] ? p + 1 : i + 1 < argc ? argv[i + 1] : "";
                    if (!p[1] && !strcmp(boot, "0")) i++;
                    if (*boot == '-' && boot[1] >= '0' && boot[1] <= '9')
                        quit(FAILED, "-b %s is not supported: the log of a node begins when the node is created", boot);
                } else if (strchr("xalqm", *p)) continue;
                else if (*p == 'n') {
                    if (p[1]) options.lines = number(p + 1, "-n");
                    else if (i + 1 < argc && argv[i + 1][0] != '-') options.lines = number(argv[++i], "-n");
                    else options.lines = 10;
                    break;
                } else if (*p == 'u') {
                    if (options.names == MAX_NAMES) quit(FAILED, "more than %d units", MAX_NAMES);
                    options.name[options.names++] = value_of(argc, argv, &i, p + 1);
                    break;
                } else if (*p == 'o') {
                    const char *format = value_of(argc, argv, &i, p + 1);
                    if (strcmp(format, "cat") && strcmp(format, "short"))
                        quit(FAILED, "output format %s is not supported: the log has the services' output without changes", format);
                    options.prefix = strcmp(format, "cat") != 0;
                    break;
                } else quit(FAILED, "option -%c is not supported: the log has the services' own lines, without times, "
                                    "priorities or kernel messages", *p);
            }
        } else
            quit(FAILED, "%s is not supported: the log has the services' own lines, without times, priorities "
                         "or kernel messages (journalctl [-u NAME]... [-n N] [-f] [-r] [-o cat])", word);
    }
    if (options.follow && options.reverse) quit(FAILED, "--reverse cannot be combined with --follow");
    if (options.follow && options.lines < 0 && tail) options.lines = 10; /* the default of journalctl(1) */
    read_units();
    if (!options.names)
        for (int i = 0; i < unit_count; i++) wanted[count++] = &units[i];
    for (int i = 0; i < options.names; i++) {
        int here = match(options.name[i], found);
        if (!here) quit(FAILED, "no service %s on this node; its services: %s", options.name[i], known());
        for (int k = 0; k < here && count < MAX_SERVICES; k++) wanted[count++] = found[k];
    }
    for (int i = 0; i < count; i++) open_log(&logs[i], wanted[i], count > 1 && options.prefix);
    for (int i = 0; i < count; i++) {
        if (options.reverse) show_reversed(&logs[i]);
        else show_new(&logs[i]);
        if (!options.follow) show_rest(&logs[i]);
    }
    while (options.follow) {
        fflush(stdout);
        if (ferror(stdout)) return FAILED;
        poll(NULL, 0, FOLLOW_MS);
        for (int i = 0; i < count; i++) {
            if (logs[i].fd < 0) open_log(&logs[i], wanted[i], count > 1 && options.prefix);
            show_new(&logs[i]);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------ systemctl */

static void quoted(const char *word) {
    if (*word && !word[strcspn(word, " \t\n\"'\\$;")]) {
        fputs(word, stdout);
        return;
    }
    putchar('"');
    for (; *word; word++) {
        if (strchr("\"\\", *word)) putchar('\\');
        if (*word == '\n') fputs("\\n", stdout);
        else putchar(*word);
    }
    putchar('"');
}

static void command_of(const struct unit *u) {
    for (char **word = u->argv; *word; word++) {
        if (word != u->argv) putchar(' ');
        quoted(*word);
    }
    putchar('\n');
}

static const char *how_it_ended(const struct unit *u) {
    static char text[64];
    if (u->status >= 0) snprintf(text, sizeof text, "code=exited, status=%d", u->status);
    else snprintf(text, sizeof text, "code=killed, signal=%s", sigabbrev_np(-u->status) ?: "unknown");
    return text;
}

static void show_status(const struct unit *u) {
    char when[64], program[64] = "";
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    time_t since = now.tv_sec - u->age_ms / 1000;
    struct log log = {0};
    strftime(when, sizeof when, "%a %Y-%m-%d %H:%M:%S %Z", localtime(&since));
    printf("%s %s%s - %s of this node\n", strcmp(active(u), "failed") ? "*" : "x", u->name, SUFFIX, u->service);
    printf("     Loaded: loaded (no unit file: kept by pid 1, testbed-init; enabled)\n");
    printf("     Active: %s (%s) since %s\n", active(u), sub(u), when);
    if (is_dead(u)) printf("    Process: (%s)\n", how_it_ended(u));
    else {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/comm", u->pid);
        FILE *file = fopen(path, "r");
        if (file && fgets(program, sizeof program, file)) program[strcspn(program, "\n")] = 0;
        if (file) fclose(file);
        printf("   Main PID: %d (%s)\n", u->pid, program);
    }
    printf("    Command: ");
    command_of(u);
    if (options.lines < 0) options.lines = 10;
    open_log(&log, u, 0);
    if (log.fd >= 0 && options.lines) {
        putchar('\n');
        show_new(&log);
        show_rest(&log);
    }
    if (log.fd >= 0) close(log.fd);
}

static int count_of(const char *state) {
    int count = 0;
    for (int i = 0; i < unit_count; i++) count += !strcmp(active(&units[i]), state);
    return count;
}

static const char *system_state(void) {
    return count_of("failed") ? "degraded" : count_of("activating") ? "starting" : "running";
}

static int status_command(void) {
    struct unit *found[MAX_SERVICES];
    int result = 0, shown = 0;
    if (!options.names) {
        char host[65] = "";
        gethostname(host, sizeof host - 1);
        printf("* %s\n    State: %s\n    Units: %d loaded (kept by pid 1, testbed-init)\n     Jobs: 0 queued\n"
               "   Failed: %d units\n", host, system_state(), unit_count, count_of("failed"));
        for (int i = 0; i < unit_count; i++)
            printf("           %s%s: %s (%s)\n", units[i].name, SUFFIX, active(&units[i]), sub(&units[i]));
        return 0;
    }
    for (int i = 0; i < options.names; i++) {
        int count = match(options.name[i], found);
        if (!count) {
            fflush(stdout);
            fprintf(stderr, "Unit %s could not be found on this node; its services: %s\n", options.name[i], known());
            result = UNKNOWN;
        }
        for (int k = 0; k < count; k++) {
            if (shown++) putchar('\n');
            show_status(found[k]);
            if (is_dead(found[k]) && !result) result = NOT_ACTIVE;
        }
    }
    return result;
}

/* Print the state of each unit. The exit status is that of is-active or is-failed. */
static int is_command(const char *wanted, int otherwise) {
    struct unit *found[MAX_SERVICES];
    int any = 0, unknown = 0;
    if (!options.names) quit(FAILED, "no unit was named");
    for (int i = 0; i < options.names; i++) {
        int count = match(options.name[i], found);
        if (!count) {
            unknown++;
            if (!options.quiet) puts("inactive");
        }
        for (int k = 0; k < count; k++) {
            if (!options.quiet) puts(active(found[k]));
            any |= !strcmp(active(found[k]), wanted);
        }
    }
    return any ? 0 : otherwise == NOT_ACTIVE && unknown == options.names ? UNKNOWN : otherwise;
}

static int is_enabled(void) {
    int result = 0;
    if (!options.names) quit(FAILED, "no unit was named");
    for (int i = 0; i < options.names; i++) {
        if (find_unit(options.name[i])) {
            if (!options.quiet) puts("enabled");
        } else {
            fprintf(stderr, "Failed to get unit file state for %s%s: no such service on this node\n",
                    bare(options.name[i]), SUFFIX);
            result = FAILED;
        }
    }
    return result;
}

static void property(const char *name, const char *format, ...) {
    va_list args;
    if (options.properties && !has_word(options.properties, name)) return;
    if (!options.value) printf("%s=", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

/* Like systemctl(1), print properties of missing units too, with exit status 0. */
static int show_command(void) {
    if (!options.names) quit(FAILED, "the properties of pid 1 itself are not supported: name a unit");
    for (int i = 0; i < options.names; i++) {
        const struct unit *u = find_unit(options.name[i]);
        if (i) putchar('\n');
        if (!u) {
            property("Id", "%s%s", bare(options.name[i]), SUFFIX);
            property("Names", "%s%s", bare(options.name[i]), SUFFIX);
            property("LoadState", "not-found");
            property("ActiveState", "inactive");
            property("SubState", "dead");
            property("UnitFileState", "%s", "");
            property("MainPID", "0");
            continue;
        }
        property("Id", "%s%s", u->name, SUFFIX);
        if (strcmp(u->name, u->service)) property("Names", "%s%s %s%s", u->name, SUFFIX, u->service, SUFFIX);
        else property("Names", "%s%s", u->name, SUFFIX);
        property("Description", "%s of this node", u->service);
        property("Type", "%s", u->notify ? "notify" : "simple");
        property("LoadState", "loaded");
        property("ActiveState", "%s", active(u));
        property("SubState", "%s", sub(u));
        property("UnitFileState", "enabled");
        property("FragmentPath", "%s", "");
        property("MainPID", "%d", u->pid);
        if (is_dead(u)) property("ExecMainStatus", "%d", u->status);
        property("Result", "%s", ended_well(u) ? "success" : u->status < 0 ? "signal" : "exit-code");
    }
    return 0;
}

static int cat_command(void) {
    int result = 0;
    if (!options.names) quit(FAILED, "no unit was named");
    for (int i = 0; i < options.names; i++) {
        const struct unit *u = find_unit(options.name[i]);
        if (!u) {
            fprintf(stderr, "No service %s on this node; its services: %s\n", options.name[i], known());
            result = FAILED;
            continue;
        }
        if (i) putchar('\n');
        printf("# No file: %s%s as pid 1 (testbed-init) has started it\n[Service]\nType=%s\n", u->name, SUFFIX,
               u->notify ? "notify" : "simple");
        for (int k = 0; k < u->nenv; k++) {
            printf("Environment=");
            quoted(u->env[k]);
            putchar('\n');
        }
        printf("ExecStart=");
        command_of(u);
    }
    return result;
}

static int is_listed(const struct unit *u) {
    if (options.state && !has_word(options.state, active(u)) && !has_word(options.state, sub(u)) &&
        !has_word(options.state, "loaded") && !has_word(options.state, "enabled"))
        return 0;
    if (!options.names) return 1;
    for (int i = 0; i < options.names; i++)
        if (!fnmatch(bare(options.name[i]), u->name, 0) || !fnmatch(bare(options.name[i]), u->service, 0)) return 1;
    return 0;
}

static int list_command(int files) {
    int width = files ? 9 : 4, count = 0;
    int none = options.type && !has_word(options.type, "service");
    for (int i = 0; i < unit_count; i++)
        for (int k = 0; k < 2; k++) {
            int length = strlen(k ? units[i].service : units[i].name) + strlen(SUFFIX);
            if (width < length && (!k || files)) width = length;
        }
    if (options.legend) {
        if (files) printf("%-*s STATE   PRESET\n", width, "UNIT FILE");
        else printf("%s%-*s LOAD   ACTIVE     SUB     DESCRIPTION\n", options.plain ? "" : "  ", width, "UNIT");
    }
    for (int i = 0; i < unit_count && !none; i++) {
        const struct unit *u = &units[i];
        char name[80];
        /* Without --all, list only active and failed units (systemctl(1)). */
        int idle = !strcmp(active(u), "inactive") && !options.all && !options.state;
        if (!is_listed(u) || (!files && idle)) continue;
        count++;
        snprintf(name, sizeof name, "%s%s", u->name, SUFFIX);
        if (files) {
            printf("%-*s enabled -\n", width, name);
            if (!strcmp(u->name, u->service)) continue;
            count++;
            snprintf(name, sizeof name, "%s%s", u->service, SUFFIX);
            printf("%-*s alias   -\n", width, name);
        } else
            printf("%s%-*s loaded %-10s %-7s %s of this node\n",
                   options.plain ? "" : strcmp(active(u), "failed") ? "  " : "x ", width, name, active(u), sub(u), u->service);
    }
    if (options.legend) printf("\n%d %s listed.\n", count, files ? "unit files" : "loaded units");
    return 0;
}

static void stop_unit(const struct unit *u) {
    char answer[512];
    if (!is_dead(u)) ask(answer, sizeof answer, -1, "stop", u->service, STOP_MS, NULL);
}

static int start_unit(const struct unit *u) {
    char answer[512];
    if (ask(answer, sizeof answer, START_MS, "start", u->service, NULL) < 0) {
        fprintf(stderr, "%s%s is still starting after %d s; see journalctl -u %s\n", u->name, SUFFIX, START_MS / 1000, u->name);
        return FAILED;
    }
    if (!strcmp(answer, "ready")) return 0;
    fprintf(stderr, "%s%s died before it was ready (%s); see journalctl -u %s\n", u->name, SUFFIX, answer, u->name);
    return FAILED;
}

static int change_command(const char *verb) {
    struct unit *found[MAX_SERVICES];
    int result = 0;
    if (!options.names) quit(FAILED, "no unit was named");
    for (int i = 0; i < options.names; i++) {
        int count = match(options.name[i], found);
        if (!count) {
            fprintf(stderr, "Failed to %s %s%s: no such service on this node; its services: %s\n", verb,
                    bare(options.name[i]), SUFFIX, known());
            result = NOT_FOUND;
        }
        for (int k = 0; k < count; k++) {
            const struct unit *u = found[k];
            int conditional = !strncmp(verb, "try-", 4) || !strcmp(verb, "condrestart");
            if (!strcmp(verb, "start")) result |= start_unit(u);
            else if (!strcmp(verb, "stop")) stop_unit(u);
            else if (!strcmp(verb, "kill")) {
                if (is_dead(u)) {
                    fprintf(stderr, "%s%s is not running\n", u->name, SUFFIX);
                    result = FAILED;
                } else kill(-u->pid, options.signal); /* a service leads a process group */
            } else if (!strcmp(verb, "enable")) { /* all are: a node starts them when it is created */
                if (options.now) result |= start_unit(u);
            } else if (!conditional || !is_dead(u)) {
                stop_unit(u);
                result |= start_unit(u);
            }
        }
    }
    return result;
}

static int systemctl(int argc, char **argv) {
    static const char *const meant[] = {"--no-pager", "--full", "--system", "--no-ask-password", "--no-wall",
                                        "--show-types", "--recursive", "--wait", NULL};
    static const char *const changes[] = {"start", "stop", "restart", "try-restart", "reload-or-restart",
                                          "try-reload-or-restart", "force-reload", "condrestart", "kill", "enable", NULL};
    const char *verb = NULL;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i], *equals = strchr(word, '=');
        size_t length = equals ? (size_t)(equals - word) : strlen(word);
#define LONG(name) (length == strlen(name) && !strncmp(word, name, length))
        const char *inside = equals ? equals + 1 : NULL;
        if (word[0] != '-' || !word[1]) {
            if (!verb) verb = word;
            else if (options.names == MAX_NAMES) quit(FAILED, "more than %d units", MAX_NAMES);
            else options.name[options.names++] = word;
        } else if (one_of(word, meant)) continue;
        else if (LONG("--quiet")) options.quiet = 1;
        else if (LONG("--all")) options.all = 1;
        else if (LONG("--plain")) options.plain = 1;
        else if (LONG("--no-legend") || !strcmp(word, "--legend=false") || !strcmp(word, "--legend=no")) options.legend = 0;
        else if (LONG("--value")) options.value = 1;
        else if (LONG("--now")) options.now = 1;
        else if (LONG("--failed")) options.state = "failed";
        else if (LONG("--property")) add_property(value_of(argc, argv, &i, inside));
        else if (LONG("--type")) options.type = value_of(argc, argv, &i, inside);
        else if (LONG("--state")) options.state = value_of(argc, argv, &i, inside);
        else if (LONG("--lines")) options.lines = number(value_of(argc, argv, &i, inside), word);
        else if (LONG("--signal")) options.signal = signal_of(value_of(argc, argv, &i, inside));
        else if (LONG("--version")) {
            puts("testbed-init, which keeps the services of this node in place of systemd");
            return 0;
        } else if (LONG("--help") || !strcmp(word, "-h")) verb = "help";
        else if (word[1] == '-') quit(FAILED, "option %s is not supported on this node", word);
        else
            for (const char *p = word + 1; *p; p++) {
                if (*p == 'q') options.quiet = 1;
                else if (*p == 'a') options.all = 1;
                else if (*p == 'l' || *p == 'r') continue;
                else if (*p == 'p') add_property(value_of(argc, argv, &i, p + 1));
                else if (*p == 'P') add_property(value_of(argc, argv, &i, p + 1)), options.value = 1;
                else if (*p == 't') options.type = value_of(argc, argv, &i, p + 1);
                else if (*p == 'n') options.lines = number(value_of(argc, argv, &i, p + 1), "-n");
                else if (*p == 's') options.signal = signal_of(value_of(argc, argv, &i, p + 1));
                else quit(FAILED, "option -%c is not supported on this node", *p);
                if (strchr("pPtns", *p)) break;
            }
    }
    if (verb && !strcmp(verb, "help")) {
        puts("systemctl of a testbed node, for the services that its pid 1 keeps:\n"
             "  status, show, cat, is-active, is-failed, is-enabled [UNIT]...\n"
             "  is-system-running, list-units, list-unit-files [PATTERN]...\n"
             "  start, stop, restart, try-restart, reload-or-restart, kill, enable UNIT...\n"
             "Options: -q -a -l -n -p -P -s -t --value --state= --failed --now --plain --no-legend --no-pager");
        return 0;
    }
    read_units();
    if (!verb || !strcmp(verb, "list-units")) return list_command(0);
    if (!strcmp(verb, "list-unit-files")) return list_command(1);
    if (!strcmp(verb, "status")) return status_command();
    if (!strcmp(verb, "is-active")) return is_command("active", NOT_ACTIVE);
    if (!strcmp(verb, "is-failed")) return is_command("failed", FAILED);
    if (!strcmp(verb, "is-enabled")) return is_enabled();
    if (!strcmp(verb, "show")) return show_command();
    if (!strcmp(verb, "cat")) return cat_command();
    if (!strcmp(verb, "is-system-running")) {
        if (!options.quiet) puts(system_state());
        return strcmp(system_state(), "running") != 0;
    }
    if (one_of(verb, changes)) return change_command(verb);
    if (!strcmp(verb, "reload"))
        quit(NOT_ACTIVE, "reload is not supported: pid 1 does not know how a service reloads; for one that "
                         "takes SIGHUP: systemctl kill -s HUP UNIT");
    quit(FAILED, "%s is not supported on this node: the lab decides which services it has, and there are no unit files "
                 "(systemctl --help lists what is supported)", verb);
}

/* ------------------------------------------------------------------ service */

static int service(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "--status-all")) {
        read_units();
        for (int i = 0; i < unit_count; i++) printf(" [ %c ]  %s\n", is_dead(&units[i]) ? '-' : '+', units[i].name);
        return 0;
    }
    if (argc != 3 || argv[1][0] == '-') quit(FAILED, "usage: service NAME status|start|stop|restart, or service --status-all");
    char *as_systemctl[] = {"systemctl", argv[2], argv[1], NULL};
    return systemctl(3, as_systemctl);
}

int is_service_command(const char *name) { return strcmp(name, "testbed-init") != 0; }

int service_command(const char *name, int argc, char **argv) {
    int status;
    called = name;
    if (!strcmp(name, "systemctl")) status = systemctl(argc, argv);
    else if (!strcmp(name, "service")) status = service(argc, argv);
    else if (!strcmp(name, "journalctl")) status = journalctl(argc, argv);
    else /* reboot and others are links to systemctl, as in the package of systemd */
        quit(FAILED, "not supported on this node: nodes are created and removed by `testbed up` and `testbed down`");
    if (fflush(stdout)) return FAILED;
    return status;
}
