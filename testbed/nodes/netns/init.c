/* testbed-init: pid 1 of a namespace node, and the keeper of services in a container.
 *
 *   testbed-init KIND LAB NODE DIGEST STATE [OPTION VALUE]...
 *   testbed-init machine | keep
 *
 * The latter two make no namespaces, and serve the same requests in those that they are started in.
 * "machine" is the first program of a container, and makes a machine of it, as far as the container is
 * privileged.  "keep" goes to the background, in a container whose first program is another.
 *
 * Of a node:
 *
 * The process that is started joins the cgroups it is given, makes the node's
 * namespaces, forks pid 1 into them, prints pid 1's number as the caller sees
 * it, and ends.  Pid 1 mounts what is private to the node, reaps, and serves
 * requests on /run/testbed/init.sock: run a command, keep a service, open a
 * file.  When pid 1 ends, the kernel ends all of the node with it.  The first
 * five arguments stay readable in /proc/PID/cmdline: they are how a node is
 * found again.
 *
 * Options:
 *   cgroup PATH        a cgroup folder to join (its cgroup.procs)
 *   mount1 DIR=OPTS    a cgroup v1 hierarchy to show below /sys/fs/cgroup
 *   mount2 DIR         a cgroup v2 hierarchy to show there; "." is /sys/fs/cgroup itself
 *   expose PATH        a folder that one of the private mounts would hide; it is
 *                      put, read-only, below /run/testbed/host
 *   machine-id HEX     who the node is (machine-id(5)): the machine's own is nobody else's
 *   tree DIR           a folder with programs of the machine, to which the node may add its own
 *   hide PATH          what is right in a tree, and not to be seen on the node
 *   cover PATH         a file or folder of the machine that is empty on the node
 *   layer DIR          a tree with packages of the node's own: its /usr, /opt and /etc are laid over the machine's
 *   image DIR          unpacked layers of an image, by number from the lowest on: they are the node's files, and
 *                      no others of the machine's but those that are exposed or bound
 *   bind PATH          a file or folder of the machine that the node can change, put below /run/testbed/bind by its
 *                      number; "bind-ro" is the same, read-only
 *   tied PID           the caller, whose number that is: the node ends with it
 *   data DIR           a folder of the machine that is the node's /var/lib, instead of one in memory
 *   network machine    the node has the machine's own network, and sets none up
 *
 * A request is one SOCK_SEQPACKET message of NUL-ended fields, with files
 * passed along (SCM_RIGHTS); the answers are messages of one line:
 *   run   CWD 0 NENV ENV... ARGV...  + files 0,1,2     -> pid N, then exit N | signal N
 *   run   CWD 1 NENV ENV... ARGV...  + a master        -> the same, on the terminal of that master
 *   start NAME DIGEST NOTIFY NENV ENV... ARGV...       -> ready | exit N | signal N | differs
 *   start NAME                                         -> the same, or unknown: as it was started before
 *   stop  NAME GRACE_MS                                -> exit N | signal N | unknown
 *   list                                               -> ok, then NAME STATE PID STATUS DIGEST lines
 *   tell  NAME                                         -> ok STATE PID STATUS AGE_MS, a line, and the start's fields
 *   open  PATH FLAGS MODE                              -> ok + file | errno N
 *   move  FROM TO                                      -> ok | errno N
 *   link  (PLACE TARGET)...                            -> ok | errno N, of the first that fails
 * A client that hangs up ends what it had running; services stay.
 * Called by another name, it is one of the commands that ask pid 1 (systemctl.c).
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "init.h"

#ifndef CLONE_NEWCGROUP
#define CLONE_NEWCGROUP 0x02000000
#endif
/* The C library of Debian 12 may lack these; the numbers are the same on every architecture. */
#define NR_OPEN_TREE 428
#define NR_MOVE_MOUNT 429
#define NR_MOUNT_SETATTR 442
#define NR_PIDFD_OPEN 434
#define TREE_CLONE 1
#define MOVE_F_EMPTY_PATH 4
#define MOVE_T_EMPTY_PATH 64
#define ATTR_RDONLY 1
struct attr { unsigned long long set, clr, propagation, userns; };
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#elif defined(__powerpc64__)
#define ARCHITECTURE AUDIT_ARCH_PPC64LE
#elif defined(__s390x__)
#define ARCHITECTURE AUDIT_ARCH_S390X
#endif

#define MAX_CLIENTS 4096
#define SPARE_FILES 32   /* of its own, and for what a request opens */
#define LOGIN_FILES 1024 /* what a login gives, for the sake of programs that use select(2) */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define NOTIFY_FOLDER "/run/testbed/notify/"

static int report_fd = -1; /* where set-up failures go */
static int maker_fd = -1;  /* readable once who the node is tied to has ended */

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    char text[1024];
    int saved = errno;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text - 64, format, args);
    va_end(args);
    n += snprintf(text + n, 64, ": %s\n", strerror(saved));
    if (write(report_fd >= 0 ? report_fd : 2, text, n) < 0) _exit(2);
    _exit(1);
}

static void make_dir(const char *path, mode_t mode) {
    if (mkdir(path, mode) && errno != EEXIST) die("mkdir %s", path);
}

static void make_parents(const char *path) {
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *p = copy + 1; *p; p++)
        if (*p == '/') {
            *p = 0;
            mkdir(copy, 0755); /* the open that follows tells if this did not work */
            *p = '/';
        }
}

static void do_mount(const char *source, const char *target, const char *type, unsigned long flags,
                     const char *data) {
    const char *what = type ? type : source ? source : "again";
    if (mount(source, target, type, flags, data)) die("mount %s on %s", what, target);
}

/* What the machine has mounted there stays out of the node: fewer mounts, faster containers. */
static void uncover(const char *path) {
    while (umount2(path, MNT_DETACH) == 0) continue;
}

static void private_tmpfs(const char *target, const char *data) {
    struct stat st;
    if (stat(target, &st)) return; /* a machine without the folder needs no private one */
    do_mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, data);
}

static void write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) die("write %s", path);
    close(fd);
}

/* ------------------------------------------------------------------ set-up of the node */

static void mount_dev(void) {
    static const struct { const char *path; unsigned major, minor; } nodes[] = {
        {"/dev/null", 1, 3},   {"/dev/zero", 1, 5}, {"/dev/full", 1, 7},    {"/dev/random", 1, 8},
        {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},  {"/dev/net/tun", 10, 200}, {"/dev/fuse", 10, 229},
    };
    do_mount("tmpfs", "/dev", "tmpfs", MS_NOSUID, "mode=755,size=64k");
    make_dir("/dev/net", 0755);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)))
            die("mknod %s", nodes[i].path);
        chmod(nodes[i].path, 0666);
    }
    make_dir("/dev/pts", 0755);
    do_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5");
    make_dir("/dev/shm", 01777);
    do_mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    make_dir("/dev/mqueue", 0755);
    if (mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)) rmdir("/dev/mqueue");
    if (symlink("pts/ptmx", "/dev/ptmx") || symlink("/proc/self/fd", "/dev/fd") ||
        symlink("/proc/self/fd/0", "/dev/stdin") || symlink("/proc/self/fd/1", "/dev/stdout") ||
        symlink("/proc/self/fd/2", "/dev/stderr"))
        die("symlink in /dev");
    do_mount("/dev/null", "/proc/kmsg", NULL, MS_BIND, NULL); /* who reads it takes it from the machine's own log */
}

static void read_only(const char *path) {
    do_mount(path, path, NULL, MS_BIND, NULL);
    do_mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL);
}

/* A node may set what is its own (net.*, by the network namespace), and nothing of the machine:
 * whatever of /proc is not about a process. */
static void protect_proc(void) {
    char path[PATH_MAX];
    struct dirent *entry;
    struct stat st;
    DIR *folder = opendir("/proc");
    if (!folder) die("/proc");
    while ((entry = readdir(folder))) {
        snprintf(path, sizeof path, "/proc/%s", entry->d_name);
        if (isdigit(entry->d_name[0]) || entry->d_name[0] == '.' || lstat(path, &st)) continue;
        if (S_ISDIR(st.st_mode) || (S_ISREG(st.st_mode) && st.st_mode & 0222)) read_only(path);
    }
    closedir(folder);
    do_mount("/proc/sys/net", "/proc/sys/net", NULL, MS_BIND, NULL);
    do_mount(NULL, "/proc/sys/net", NULL, MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

/* What has no namespace and no lab needs: the machine's clock, swap, kernel, log and ports.
 * Capabilities stay: `docker run --privileged` asks for all that the kernel has, and fails
 * where one is missing. */
static void refuse_calls(void) {
    static const int refused[] = {
        SYS_clock_settime, SYS_clock_adjtime, SYS_settimeofday, SYS_adjtimex,       SYS_swapon, SYS_swapoff,
        SYS_kexec_load,    SYS_kexec_file_load, SYS_delete_module, SYS_syslog,
#ifdef SYS_iopl
        SYS_iopl,          SYS_ioperm,
#endif
    };
    enum { COUNT = sizeof refused / sizeof *refused };
    struct sock_filter filter[COUNT + 5] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, COUNT + 1), /* other programs' numbers are others */
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    for (int i = 0; i < COUNT; i++)
        filter[3 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[i], COUNT - i, 0);
    filter[3 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[4 + COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    struct sock_fprog program = {COUNT + 5, filter};
    /* Without the flag some kernels run all of the node without speculation, and slowly. */
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program)) die("seccomp filter");
}

/* cgroup v2 keeps processes in leaves only: pid 1 moves down before controllers are handed on. */
static void delegate_v2(const char *root) {
    char path[PATH_MAX], controllers[512] = "";
    snprintf(path, sizeof path, "%s/init", root);
    make_dir(path, 0755);
    snprintf(path, sizeof path, "%s/init/cgroup.procs", root);
    write_text(path, "0");
    snprintf(path, sizeof path, "%s/cgroup.controllers", root);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) die("open %s", path);
    if (read(fd, controllers, sizeof controllers - 1) < 0) die("read %s", path);
    close(fd);
    snprintf(path, sizeof path, "%s/cgroup.subtree_control", root);
    for (char *save = NULL, *c = strtok_r(controllers, " \n", &save); c; c = strtok_r(NULL, " \n", &save)) {
        char enable[64];
        snprintf(enable, sizeof enable, "+%s", c);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) die("open %s", path);
        /* Some controllers refuse while real-time tasks run; the node does without that one. */
        if (write(fd, enable, strlen(enable)) < 0 && errno == EIO) die("write %s", path);
        close(fd);
    }
}

static void mount_cgroups(int argc, char **argv) {
    char path[PATH_MAX];
    int tmpfs = 0;
    for (int i = 6; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "mount2") && !strcmp(argv[i + 1], ".")) {
            do_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
            delegate_v2("/sys/fs/cgroup");
            return;
        }
    }
    for (int i = 6; i + 1 < argc; i += 2) {
        int v1 = !strcmp(argv[i], "mount1"), v2 = !strcmp(argv[i], "mount2");
        if (!v1 && !v2) continue;
        if (!tmpfs++) do_mount("tmpfs", "/sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755");
        char *dir = strdup(argv[i + 1]), *options = strchr(dir, '=');
        if (options) *options++ = 0;
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s", dir);
        make_dir(path, 0755);
        do_mount("cgroup", path, v1 ? "cgroup" : "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, v1 ? options : NULL);
        free(dir);
    }
}

/* ------------------------------------------------------------------ who the node is */

/* Lays a file with that text over one that names the machine, where there is such a one. */
static void lay_over(const char *path, const char *text, mode_t mode) {
    char file[PATH_MAX] = "/run/testbed/identity/";
    struct stat st;
    if (stat(path, &st)) return;
    size_t start = strlen(file);
    snprintf(file + start, sizeof file - start, "%s", path + 1);
    for (char *p = file + start; *p; p++)
        if (*p == '/') *p = '-';
    write_text(file, text);
    if (chmod(file, mode)) die("chmod %s", file);
    do_mount(file, path, NULL, MS_BIND, NULL);
    do_mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

/* Daemons take their names from these, and take two machines of one name for one. */
static void own_identity(const char *id) {
    static const char *const serials[] = {
        "/sys/class/dmi/id/product_serial", "/sys/class/dmi/id/board_serial", "/sys/class/dmi/id/chassis_serial",
        "/sys/firmware/devicetree/base/serial-number", "/sys/firmware/devicetree/base/system-id",
        "/sys/devices/soc0/serial_number",
    };
    static const char *const uuids[] = {
        "/sys/class/dmi/id/product_uuid", "/sys/hypervisor/uuid", "/sys/firmware/devicetree/base/vm,uuid",
    };
    char line[40], text[64] = "";
    make_dir("/run/testbed/identity", 0700);
    snprintf(line, sizeof line, "%s\n", id);
    unlink("/etc/machine-id"); /* it may be a link, and must not be written through */
    write_text("/etc/machine-id", line);
    chmod("/etc/machine-id", 0444);
    mkdir("/var/lib/dbus", 0755);
    int fd = open("/var/lib/dbus/machine-id", O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
    if (fd >= 0 && write(fd, line, strlen(line)) < 0) die("write /var/lib/dbus/machine-id");
    if (fd >= 0) close(fd);
    for (size_t i = 0; i < sizeof serials / sizeof *serials; i++) lay_over(serials[i], line, 0400);
    snprintf(text, sizeof text, "%.8s-%.4s-%.4s-%.4s-%.12s\n", id, id + 8, id + 12, id + 16, id + 20);
    for (size_t i = 0; i < sizeof uuids / sizeof *uuids; i++) lay_over(uuids[i], text, 0400);
    make_dir("/run/testbed/identity/none", 0755);
    struct stat st;
    if (!stat("/sys/firmware/dmi/tables", &st)) /* the same in its raw form, which dmidecode reads */
        do_mount("/run/testbed/identity/none", "/sys/firmware/dmi/tables", NULL, MS_BIND, NULL);
    /* A node that is made has booted. */
    fd = open("/proc/sys/kernel/random/uuid", O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (size < 0) die("/proc/sys/kernel/random/uuid");
    text[size] = 0;
    close(fd);
    lay_over("/proc/sys/kernel/random/boot_id", text, 0444);
}

/* Made by the software itself where they are missing; those that are there are somebody else's. */
static void forget_made(void) {
    static const char *const made[] = {
        "/etc/hostid", "/etc/docker/key.json", "/etc/nvme/hostid", "/etc/nvme/hostnqn", "/etc/iscsi/initiatorname.iscsi",
    };
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) unlink(made[i]);
    DIR *folder = opendir("/etc/ssh");
    if (!folder) return;
    for (struct dirent *entry; (entry = readdir(folder));)
        if (!strncmp(entry->d_name, "ssh_host_", 9)) unlinkat(dirfd(folder), entry->d_name, 0);
    closedir(folder);
}

static void loopback_up(void) {
    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strcpy(request.ifr_name, "lo");
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request)) die("loopback");
    request.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &request)) die("loopback up");
    close(fd);
}

static int mount_id(int fd) {
    struct file_handle handle = {.handle_bytes = 0};
    int id = -1; /* given even where the handle, which nobody wants, does not fit */
    if (name_to_handle_at(fd, "", &handle, &id, AT_EMPTY_PATH) && errno != EOVERFLOW) die("mount id");
    return id;
}

/* Who enters a mount namespace gets its topmost root, whatever the root of those inside: when
 * testbed itself runs in a chroot, that would lead out of the node, and to files it can write.
 * So the chroot becomes the root of the namespace, and the rest goes. */
static void leave_chroot(void) {
    struct stat ours, top;
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int namespace = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (root < 0 || namespace < 0 || setns(namespace, CLONE_NEWNS)) die("/proc/self/ns/mnt");
    int above = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (above < 0 || fstat(root, &ours) || fstat(above, &top)) die("stat /");
    if (mount_id(root) != mount_id(above) || ours.st_ino != top.st_ino) {
        do_mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
        int tree = syscall(NR_OPEN_TREE, root, "", TREE_CLONE | O_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH);
        if (tree < 0) die("open_tree of the chroot");
        if (syscall(NR_MOVE_MOUNT, tree, "", root, "", MOVE_F_EMPTY_PATH | MOVE_T_EMPTY_PATH) || fchdir(tree) ||
            syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
            die("pivot_root out of the chroot");
        close(tree);
    }
    close(above);
    close(namespace);
    close(root);
}

/* Which of the machine's packages are installed: their files are the node's, too. */
static const char *const databases[] = {"/var/lib/dpkg", "/var/lib/rpm", "/var/lib/pacman"};
#define DATABASES (sizeof databases / sizeof *databases)

static void show_databases(const int *from) {
    struct attr attr = {.set = ATTR_RDONLY};
    for (size_t i = 0; i < DATABASES; i++) {
        if (from[i] < 0) continue; /* another distribution's */
        make_dir(databases[i], 0755);
        if (syscall(NR_MOVE_MOUNT, from[i], "", AT_FDCWD, databases[i], MOVE_F_EMPTY_PATH) ||
            syscall(NR_MOUNT_SETATTR, AT_FDCWD, databases[i], AT_RECURSIVE, &attr, sizeof attr))
            die("showing %s", databases[i]);
        close(from[i]);
    }
}

/* ------------------------------------------------------------------ packages of the node's own */

#define LAYERS "/run/testbed/layers"
#define MAX_LAYERS 8
static int layers[MAX_LAYERS], layer_count;

static void find_layers(int argc, char **argv) {
    for (int i = 6; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "layer")) continue;
        if (layer_count == MAX_LAYERS) errno = E2BIG, die("layer %s", argv[i + 1]);
        layers[layer_count] = syscall(NR_OPEN_TREE, AT_FDCWD, argv[i + 1], TREE_CLONE | O_CLOEXEC);
        if (layers[layer_count++] < 0) die("open_tree %s", argv[i + 1]);
    }
}

/* Puts them where nothing that is mounted later hides them. */
static void keep_layers(void) {
    struct attr attr = {.set = ATTR_RDONLY};
    char path[64];
    if (layer_count) make_dir(LAYERS, 0755);
    for (int i = 0; i < layer_count; i++) {
        snprintf(path, sizeof path, LAYERS "/%d", i);
        make_dir(path, 0755);
        if (syscall(NR_MOVE_MOUNT, layers[i], "", AT_FDCWD, path, MOVE_F_EMPTY_PATH) ||
            syscall(NR_MOUNT_SETATTR, AT_FDCWD, path, 0, &attr, sizeof attr))
            die("mount %s", path);
        close(layers[i]);
    }
}

/* Writes the lower folders of an overlay at a path, the machine's last; returns how many are the packages'. */
static int lowers(char *text, size_t size, const char *path, const char *machine) {
    struct stat st;
    size_t used = 0;
    int count = 0;
    for (int i = 0; i < layer_count; i++) {
        char folder[PATH_MAX + sizeof LAYERS + 16];
        snprintf(folder, sizeof folder, LAYERS "/%d%s", i, path);
        if (stat(folder, &st) || !S_ISDIR(st.st_mode)) continue;
        used += snprintf(text + used, size - used, "%s:", folder);
        if (used >= size) break; /* snprintf returns what it would have written */
        count++;
    }
    if (used < size) used += snprintf(text + used, size - used, "%s", machine);
    if (used >= size) errno = ENAMETOOLONG, die("layers of %s", path);
    return count;
}

/* What the machine has mounted below is not seen then. */
static void show_layers(void) {
    static const char *const places[] = {"/usr", "/opt"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char options[PATH_MAX] = "lowerdir=";
        size_t start = strlen(options);
        struct stat st;
        if (!stat(places[i], &st) && lowers(options + start, sizeof options - start, places[i], places[i]))
            do_mount("overlay", places[i], "overlay", MS_RDONLY, options);
    }
}

/* ------------------------------------------------------------------ binds */

#define BINDS "/run/testbed/bind"
static struct bind { int tree, read_only; } *binds;
static int bind_count;

static void find_binds(int argc, char **argv) {
    if (!(binds = calloc(argc, sizeof *binds))) die("calloc");
    for (int i = 6; i + 1 < argc; i += 2) {
        int read_only = !strcmp(argv[i], "bind-ro");
        if (!read_only && strcmp(argv[i], "bind")) continue;
        int tree = syscall(NR_OPEN_TREE, AT_FDCWD, argv[i + 1], TREE_CLONE | O_CLOEXEC | AT_RECURSIVE);
        if (tree < 0) die("open_tree %s", argv[i + 1]);
        binds[bind_count++] = (struct bind){tree, read_only};
    }
}

static void keep_binds(void) {
    struct attr attr = {.set = ATTR_RDONLY};
    struct stat st;
    char path[64];
    if (bind_count) make_dir(BINDS, 0711);
    for (int i = 0; i < bind_count; i++) {
        snprintf(path, sizeof path, BINDS "/%d", i);
        if (fstat(binds[i].tree, &st)) die("stat %s", path);
        if (S_ISDIR(st.st_mode)) make_dir(path, 0700);
        else write_text(path, "");
        if (syscall(NR_MOVE_MOUNT, binds[i].tree, "", AT_FDCWD, path, MOVE_F_EMPTY_PATH)) die("move_mount %s", path);
        if (binds[i].read_only && syscall(NR_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof attr))
            die("mount_setattr %s", path);
        close(binds[i].tree);
    }
    free(binds);
}

/* ------------------------------------------------------------------ programs of the node's own */

/* Where login shells find their PATH.  The machine's own may name folders of other programs, and
 * daemons and proxies that are none of the node's. */
static const char profile[] = "PATH=" DEFAULT_PATH "\nexport PATH\n"
                              "[ \"$BASH\" ] && [ -r /etc/bash.bashrc ] && . /etc/bash.bashrc\n:\n";
static const char bashrc[] = "[ -z \"$PS1\" ] || PS1='\\u@\\h:\\w\\$ '\n";

/* A folder of the machine with what the node adds to it or hides of it.  The kernel remembers
 * that there was no such file; to see what the machine installs later, the folder is watched. */
static struct tree { const char *path; int below; struct timespec changed; } trees[16];
static int tree_count;

static void find_tree(const char *path) {
    struct stat st;
    if (tree_count == sizeof trees / sizeof *trees) errno = E2BIG, die("tree %s", path);
    struct tree *tree = &trees[tree_count++];
    tree->path = strdup(path); /* the arguments are wiped */
    tree->below = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (tree->below < 0 || fstat(tree->below, &st)) die("open %s", path);
    tree->changed = st.st_mtim;
}

static void show_tree(const struct tree *tree, int argc, char **argv) {
    char upper[64], name[PATH_MAX], machine[32], lower[PATH_MAX], options[2 * PATH_MAX];
    const char *path = tree->path;
    snprintf(upper, sizeof upper, "/run/testbed/tree%d", (int)(tree - trees) + 1);
    make_dir(upper, 0755);
    snprintf(name, sizeof name, "%s/work", upper);
    make_dir(name, 0755);
    snprintf(name, sizeof name, "%s/upper", upper);
    make_dir(name, 0755);
    size_t length = strlen(path);
    for (int i = 6; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "hide") || strncmp(argv[i + 1], path, length) || argv[i + 1][length] != '/') continue;
        snprintf(name, sizeof name, "%s/upper%s", upper, argv[i + 1] + length);
        /* overlayfs.rst, "whiteouts and opaque directories" */
        if (mknod(name, S_IFCHR, makedev(0, 0)) && errno != EEXIST) die("hide %s", argv[i + 1]);
    }
    /* By its number: at its path there may be an overlay, and the kernel allows few of them on each other. */
    snprintf(machine, sizeof machine, "/proc/self/fd/%d", tree->below);
    lowers(lower, sizeof lower, path, layer_count ? machine : path);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, upper, upper);
    do_mount("overlay", path, "overlay", 0, options);
}

/* What the kernel remembers of a tree is given up once the machine has changed the folder. */
static void renew_trees(void) {
    struct stat st;
    for (struct tree *tree = trees; tree < trees + tree_count; tree++) {
        if (fstat(tree->below, &st) || !memcmp(&st.st_mtim, &tree->changed, sizeof st.st_mtim)) continue;
        tree->changed = st.st_mtim;
        mount(NULL, tree->path, NULL, MS_REMOUNT, NULL);
    }
}

static int of_tree(int fd) {
    for (int i = 0; i < tree_count; i++)
        if (trees[i].below == fd) return 1;
    return 0;
}

static void cover(const char *path) {
    struct stat st;
    if (stat(path, &st)) return;
    if (S_ISDIR(st.st_mode)) {
        do_mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=700");
        return;
    }
    write_text("/run/testbed/empty", "");
    do_mount("/run/testbed/empty", path, NULL, MS_BIND, NULL);
    do_mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL);
}

static void own_programs(int argc, char **argv) {
    for (int i = 6; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "tree")) find_tree(argv[i + 1]);
    show_layers();
    for (int i = 0; i < tree_count; i++) show_tree(&trees[i], argc, argv);
    for (int i = 6; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "cover")) cover(argv[i + 1]);
}

/* ------------------------------------------------------------------ an image as the node's files */

/* Makes the layers of an image the root, with a layer of the node's own above; returns 0 if there is none. */
static int enter_image(int argc, char **argv) {
    static const char *const folders[] = {"dev", "etc", "proc", "run", "sys", "tmp", "var", "var/log", "var/tmp"};
    static const char own[] = "upperdir=/run/upper,workdir=/run/work";
    const char *image = NULL;
    char name[16], options[PATH_MAX] = "lowerdir=";
    struct stat st;
    int count = 0;
    for (int i = 6; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "image")) image = argv[i + 1];
    if (!image) return 0;
    if (chdir(image)) die("%s", image);
    for (; snprintf(name, sizeof name, "%d", count), !stat(name, &st); count++) continue;
    for (int i = count - 1; i >= 0; i--) {
        size_t used = strlen(options);
        snprintf(options + used, sizeof options - used, "%d%c", i, i ? ':' : ',');
    }
    size_t used = strlen(options);
    if ((size_t)snprintf(options + used, sizeof options - used, "%s", own) >= sizeof options - used)
        errno = ENAMETOOLONG, die("layers of %s", image);
    private_tmpfs("/run", "mode=755");
    make_dir("/run/upper", 0755);
    make_dir("/run/work", 0755);
    make_dir("/run/root", 0755);
    do_mount("overlay", "/run/root", "overlay", 0, options);
    if (chdir("/run/root") || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        die("pivot_root into %s", image);
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        snprintf(options, sizeof options, "/%s", folders[i]);
        if (stat(options, &st)) make_dir(options, 0755);
    }
    return 1;
}

static const char *option(int argc, char **argv, const char *name) {
    for (int i = 6; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return NULL;
}

static void set_up(int argc, char **argv) {
    int given[16], count = 0, data = -1;
    const char *kept = option(argc, argv, "data");
    const char *exposed[16];
    char path[PATH_MAX], lower[PATH_MAX], etc[PATH_MAX + 128];
    leave_chroot();
    do_mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
    find_layers(argc, argv);
    find_binds(argc, argv);
    for (int i = 6; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "expose") || count == 16) continue;
        given[count] = syscall(NR_OPEN_TREE, AT_FDCWD, argv[i + 1], TREE_CLONE | O_CLOEXEC | AT_RECURSIVE);
        if (given[count] < 0) die("open_tree %s", argv[i + 1]);
        exposed[count++] = argv[i + 1];
    }
    if (kept && (data = syscall(NR_OPEN_TREE, AT_FDCWD, kept, TREE_CLONE | O_CLOEXEC)) < 0) die("open_tree %s", kept);
    int image = enter_image(argc, argv);
    int packages[DATABASES];
    for (size_t i = 0; i < DATABASES && !image; i++)
        packages[i] = syscall(NR_OPEN_TREE, AT_FDCWD, databases[i], TREE_CLONE | O_CLOEXEC | AT_RECURSIVE);
    struct attr attr = {.set = ATTR_RDONLY};
    if (!image && syscall(NR_MOUNT_SETATTR, AT_FDCWD, "/", AT_RECURSIVE, &attr, sizeof attr))
        die("making the machine's own mounts read-only (mount_setattr, Linux 5.12)");
    static const char *const replaced[] = {"/run", "/var/lib", "/var/log", "/tmp", "/var/tmp", "/proc", "/dev", "/sys"};
    for (size_t i = 0; i < sizeof replaced / sizeof *replaced && !image; i++) uncover(replaced[i]);
    private_tmpfs("/run", "mode=755");
    make_dir("/run/lock", 01777);
    write_text("/run/utmp", ""); /* who(1), screen(1): nobody has logged in */
    make_dir("/run/testbed", 0711); /* every user may run what is exposed below it */
    make_dir("/run/testbed/notify", 0700);
    keep_layers();
    keep_binds();
    if (!image) {
        make_dir("/run/testbed/etc", 0755);
        make_dir("/run/testbed/etc/upper", 0755);
        make_dir("/run/testbed/etc/work", 0755);
        lowers(lower, sizeof lower, "/etc", "/etc");
        snprintf(etc, sizeof etc, "lowerdir=%s,upperdir=/run/testbed/etc/upper,workdir=/run/testbed/etc/work", lower);
        do_mount("overlay", "/etc", "overlay", 0, etc);
        write_text("/run/testbed/etc/upper/profile", profile);
        write_text("/run/testbed/etc/upper/bash.bashrc", bashrc);
        write_text("/run/testbed/etc/upper/environment", "");
        if (!kept) private_tmpfs("/var/lib", "mode=755");
        else if (syscall(NR_MOVE_MOUNT, data, "", AT_FDCWD, "/var/lib", MOVE_F_EMPTY_PATH)) die("move_mount %s", kept);
        show_databases(packages);
        private_tmpfs("/var/log", "mode=755");
    }
    private_tmpfs("/tmp", "mode=1777");
    private_tmpfs("/var/tmp", "mode=1777");
    make_dir("/var/log/testbed", 0755);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "/run/testbed/host%s/", exposed[i]);
        make_parents(path);
        path[strlen(path) - 1] = 0;
        if (syscall(NR_MOVE_MOUNT, given[i], "", AT_FDCWD, path, MOVE_F_EMPTY_PATH)) die("move_mount %s", path);
        if (syscall(NR_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof attr)) die("mount_setattr %s", path);
        close(given[i]);
    }
    do_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    protect_proc();
    mount_dev();
    do_mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, NULL);
    mount_cgroups(argc, argv);
    if (!image) own_programs(argc, argv);
    for (int i = 6; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "machine-id")) {
            if (strlen(argv[i + 1]) != 32) errno = EINVAL, die("machine-id %s", argv[i + 1]);
            own_identity(argv[i + 1]);
            forget_made();
        }
    /* As systemd makes it: who asks for mounts that others see (a Pod's Bidirectional) gets them.
     * Private before, so that nobody outside of the node is among those others. */
    do_mount("none", "/", NULL, MS_REC | MS_SHARED, NULL);
    if (sethostname(argv[3], strlen(argv[3]))) die("sethostname");
    if (!option(argc, argv, "network")) loopback_up();
    refuse_calls();
}

/* ------------------------------------------------------------------ services and clients */

struct service {
    char name[64], digest[128];
    pid_t pid;
    int ready, dead, status, notify;
    long long since; /* when it came into this state, by the clock of now_ms() */
    char *request;   /* how it was started, fields of a message */
    size_t size;
};

enum wish { NOTHING, RUN, READY, STOP };

struct client {
    int fd;
    enum wish wish;
    pid_t pid;               /* of a RUN */
    struct service *service; /* of a READY or STOP */
    long long deadline;      /* of a STOP, in ms */
};

static struct service services[MAX_SERVICES];
static int service_count;
static struct client clients[MAX_CLIENTS];
static int client_count;
static sigset_t no_signals;
static const char default_action[64]; /* the kernel's struct sigaction of SIG_DFL; libc keeps 32 and 33 for itself */
static struct rlimit open_files = {LOGIN_FILES, LOGIN_FILES}; /* its own, raised to the hard one */

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

__attribute__((format(printf, 2, 3))) static void answer(int fd, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    send(fd, text, n, MSG_NOSIGNAL | MSG_DONTWAIT); /* a client that is gone is noticed by poll */
}

static void answer_status(int fd, int status) {
    if (WIFSIGNALED(status)) answer(fd, "signal %d", WTERMSIG(status));
    else answer(fd, "exit %d", WEXITSTATUS(status));
}

static void answer_file(int fd, int file) {
    char data[] = "ok", control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {data, 2};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &file, sizeof(int));
    sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void drop_client(int i) {
    /* Whoever started a command and hung up will not want it to go on. */
    if (clients[i].wish == RUN) {
        kill(clients[i].pid, SIGKILL); /* it may not lead its group yet, and then has no children */
        kill(-clients[i].pid, SIGKILL);
    }
    close(clients[i].fd);
    clients[i] = clients[--client_count];
}

/* Ends the child's life as a copy of pid 1: own session, own signals, then the program. A service
 * may open as many files as there may be, as Docker's own unit lets it; a command as many as in a
 * login. */
__attribute__((noreturn)) static void become(const int files[3], const char *cwd, int tty, int service, char **env,
                                             char **argv) {
    struct rlimit limit = open_files;
    const char *path = DEFAULT_PATH;
    setsid();
    for (int i = 0; i < 3; i++)
        if (dup2(files[i], i) < 0) _exit(126);
    if (tty) ioctl(0, TIOCSCTTY, 0);
    if (!service && limit.rlim_cur > LOGIN_FILES) limit.rlim_cur = LOGIN_FILES;
    setrlimit(RLIMIT_NOFILE, &limit);
    /* Who made the node may ignore some, as nohup(1) does SIGHUP, and execve(2) would hand that on. */
    for (int i = 1; i < NSIG; i++) syscall(SYS_rt_sigaction, i, default_action, NULL, NSIG / 8);
    sigprocmask(SIG_SETMASK, &no_signals, NULL);
    if (chdir(*cwd ? cwd : "/")) {
        dprintf(2, "testbed-init: chdir %s: %s\n", cwd, strerror(errno));
        _exit(126);
    }
    for (char **e = env; *e; e++)
        if (!strncmp(*e, "PATH=", 5)) path = *e + 5;
    setenv("PATH", path, 1); /* execvpe searches the caller's PATH, not the one in env */
    execvpe(argv[0], argv, env);
    int missing = errno == ENOENT;
    dprintf(2, "testbed-init: %s: %s\n", argv[0], strerror(errno));
    _exit(missing ? 127 : 126);
}

static struct service *find_service(const char *name) {
    for (int i = 0; i < service_count; i++)
        if (!strcmp(services[i].name, name)) return &services[i];
    return NULL;
}

static int notify_socket(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, NOTIFY_FOLDER "%s", name);
    unlink(address.sun_path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Splits NENV ENV... ARGV... ; the arrays are the message's own fields. */
static int split(char **field, int n, int at, char ***env, char ***argv, char *extra) {
    static char *environment[MAX_FIELDS + 2];
    int count = at < n ? atoi(field[at]) : -1, kept = 0;
    if (count < 0 || at + 1 + count >= n) return -1;
    for (int i = 0; i < count; i++) environment[kept++] = field[at + 1 + i];
    if (extra) environment[kept++] = extra;
    environment[kept] = NULL;
    field[n] = NULL;
    *env = environment;
    *argv = field + at + 1 + count;
    return 0;
}

/* The terminal of a pseudoterminal's master, in the devpts that the master was opened in. */
static int terminal_of(int master) {
    int unlocked = 0;
    if (ioctl(master, TIOCSPTLCK, &unlocked)) return -1;
    return ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

static void request_run(struct client *c, char **field, int n, int *files, int file_count) {
    char **env, **argv;
    int tty = n > 2 && atoi(field[2]), terminal = -1;
    if (file_count != (tty ? 1 : 3) || n < 5 || split(field, n, 3, &env, &argv, NULL)) {
        answer(c->fd, "error malformed run");
        return;
    }
    if (tty && (terminal = terminal_of(files[0])) < 0) {
        answer(c->fd, "error terminal: %s", strerror(errno));
        return;
    }
    const int terminals[3] = {terminal, terminal, terminal};
    renew_trees();
    pid_t pid = fork();
    if (pid == 0) become(tty ? terminals : files, field[1], tty, 0, env, argv);
    if (tty) close(terminal);
    if (pid < 0) {
        answer(c->fd, "error fork: %s", strerror(errno));
        return;
    }
    c->wish = RUN;
    c->pid = pid;
    answer(c->fd, "pid %d", pid);
}

static void launch(struct service *s, char **field, int n) {
    char variable[160], log[PATH_MAX], **env, **argv;
    snprintf(s->digest, sizeof s->digest, "%s", field[2]);
    s->ready = s->dead = s->status = 0;
    s->since = now_ms();
    s->notify = -1;
    if (strcmp(field[3], "1")) s->ready = 1;
    else if ((s->notify = notify_socket(s->name)) < 0) {
        s->dead = 1, s->status = 126 << 8;
        return;
    }
    snprintf(variable, sizeof variable, "NOTIFY_SOCKET=" NOTIFY_FOLDER "%s", s->name);
    split(field, n, 4, &env, &argv, s->notify >= 0 ? variable : NULL);
    snprintf(log, sizeof log, LOG_FOLDER "%s.log", s->name);
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int files[3] = {in, out, out};
    s->pid = fork();
    if (s->pid == 0) become(files, "/", 0, 1, env, argv);
    if (s->pid < 0) s->dead = 1, s->status = 126 << 8;
    close(in);
    close(out);
}

/* Divides a message into its fields; returns how many, -1 if there are too many. */
static int fields_of(char *data, size_t size, char **field) {
    int n = 0;
    char *p = data;
    for (; p < data + size && n < MAX_FIELDS; p += strlen(p) + 1) field[n++] = p;
    return p < data + size ? -1 : n;
}

static void keep_request(struct service *s, char **field, int n) {
    size_t size = field[n - 1] + strlen(field[n - 1]) + 1 - field[0];
    char *copy = malloc(size);
    if (!copy) return; /* it starts; it alone cannot be started again by its name */
    memcpy(copy, field[0], size);
    free(s->request);
    s->request = copy;
    s->size = size;
}

static void request_start(struct client *c, char **field, int n) {
    static char *before[MAX_FIELDS + 1];
    char **env, **argv;
    if (n == 2) {
        struct service *known = find_service(field[1]);
        if (!known || !known->request) {
            answer(c->fd, "unknown");
            return;
        }
        n = fields_of(known->request, known->size, before);
        field = before;
    }
    if (n < 6 || split(field, n, 4, &env, &argv, NULL) || !*field[1] || strlen(field[1]) >= sizeof services->name ||
        strchr(field[1], '/')) {
        answer(c->fd, "error malformed start");
        return;
    }
    struct service *s = find_service(field[1]);
    if (!s && service_count == MAX_SERVICES) {
        answer(c->fd, "error too many services");
        return;
    }
    if (!s) {
        s = &services[service_count++];
        snprintf(s->name, sizeof s->name, "%s", field[1]);
        s->dead = 1;
    }
    if (s->dead) {
        if (field[0] != s->request) keep_request(s, field, n);
        launch(s, field, n);
    } else if (strcmp(s->digest, field[2])) {
        answer(c->fd, "differs");
        return;
    }
    if (s->dead) answer_status(c->fd, s->status);
    else if (s->ready) answer(c->fd, "ready");
    else c->wish = READY, c->service = s;
}

static void request_stop(struct client *c, char **field, int n) {
    struct service *s = n == 3 ? find_service(field[1]) : NULL;
    if (!s) answer(c->fd, "unknown");
    else if (s->dead) answer_status(c->fd, s->status);
    else {
        kill(s->pid, SIGTERM);
        c->wish = STOP;
        c->service = s;
        c->deadline = now_ms() + atoi(field[2]);
    }
}

/* STATE PID STATUS of a service. */
static const char *state_of(const struct service *s) {
    static char text[64];
    int status = !s->dead ? 0 : WIFSIGNALED(s->status) ? -WTERMSIG(s->status) : WEXITSTATUS(s->status);
    snprintf(text, sizeof text, "%s %d %d", s->dead ? "dead" : s->ready ? "ready" : "starting", s->dead ? 0 : s->pid,
             status);
    return text;
}

static void request_list(struct client *c) {
    char text[MAX_SERVICES * 256] = "ok\n";
    size_t used = 3; /* an empty message would look like a hang-up */
    for (int i = 0; i < service_count; i++)
        used += snprintf(text + used, sizeof text - used, "%s %s %s\n", services[i].name, state_of(&services[i]),
                         services[i].digest);
    send(c->fd, text, used, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void request_tell(struct client *c, const char *name) {
    struct service *s = find_service(name);
    char line[128];
    if (!s) {
        answer(c->fd, "unknown");
        return;
    }
    int size = snprintf(line, sizeof line, "ok %s %lld\n", state_of(s), now_ms() - s->since);
    struct iovec parts[2] = {{line, size}, {s->request, s->request ? s->size : 0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void request_open(struct client *c, char **field) {
    int flags = atoi(field[2]);
    if (flags & O_CREAT) make_parents(field[1]);
    int file = open(field[1], flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, atoi(field[3]));
    if (file < 0) answer(c->fd, "errno %d", errno);
    else {
        if (flags & O_CREAT) fchmod(file, atoi(field[3]));
        answer_file(c->fd, file);
        close(file);
    }
}

static void request_link(struct client *c, char **field, int n) {
    char part[PATH_MAX];
    for (int i = 1; i + 1 < n; i += 2) {
        snprintf(part, sizeof part, "%s.testbed", field[i]);
        make_parents(field[i]);
        unlink(part);
        if (symlink(field[i + 1], part) || rename(part, field[i])) {
            answer(c->fd, "errno %d %s", errno, field[i]);
            unlink(part);
            return;
        }
    }
    answer(c->fd, "ok");
}

static void serve(struct client *c, char *data, size_t size, int *files, int file_count) {
    static char *field[MAX_FIELDS + 1];
    if (!size || data[size - 1]) {
        answer(c->fd, "error unfinished message");
        return;
    }
    int n = fields_of(data, size, field);
    if (n < 0) answer(c->fd, "error more than %d arguments", MAX_FIELDS);
    else if (!strcmp(field[0], "run")) request_run(c, field, n, files, file_count);
    else if (!strcmp(field[0], "start")) request_start(c, field, n);
    else if (!strcmp(field[0], "stop")) request_stop(c, field, n);
    else if (!strcmp(field[0], "list")) request_list(c);
    else if (!strcmp(field[0], "tell") && n == 2) request_tell(c, field[1]);
    else if (!strcmp(field[0], "open") && n == 4) request_open(c, field);
    else if (!strcmp(field[0], "link") && n % 2) request_link(c, field, n);
    else if (!strcmp(field[0], "move") && n == 3) {
        if (rename(field[1], field[2])) {
            answer(c->fd, "errno %d", errno);
            unlink(field[1]);
        } else answer(c->fd, "ok");
    } else answer(c->fd, "error unknown request");
}

/* Returns 0 when the client has hung up. */
static int receive(struct client *c) {
    static char data[MAX_MESSAGE];
    char control[CMSG_SPACE(3 * sizeof(int))];
    int files[4], file_count = 0; /* four: what the buffer's padding has room for */
    struct iovec part = {data, sizeof data};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(c->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0) return errno == EAGAIN || errno == EINTR;
    if (size == 0) return 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h))
        if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS) {
            file_count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(files, CMSG_DATA(h), file_count * sizeof(int));
        }
    if (c->wish != NOTHING) answer(c->fd, "error one request at a time");
    else if (message.msg_flags & MSG_CTRUNC) answer(c->fd, "error too many open files");
    else if (message.msg_flags & MSG_TRUNC) answer(c->fd, "error message too long");
    else serve(c, data, size, files, file_count);
    for (int i = 0; i < file_count; i++) close(files[i]);
    return 1;
}

static void service_died(struct service *s, int status) {
    s->dead = 1;
    s->ready = 0;
    s->status = status;
    s->since = now_ms();
    if (s->notify >= 0) close(s->notify);
    s->notify = -1;
    for (int i = 0; i < client_count; i++)
        if (clients[i].service == s && (clients[i].wish == READY || clients[i].wish == STOP)) {
            answer_status(clients[i].fd, status);
            clients[i].wish = NOTHING;
        }
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (int i = 0; i < client_count; i++)
            if (clients[i].wish == RUN && clients[i].pid == pid) {
                answer_status(clients[i].fd, status);
                clients[i].wish = NOTHING;
            }
        for (int i = 0; i < service_count; i++)
            if (!services[i].dead && services[i].pid == pid) service_died(&services[i], status);
    }
}

static void notified(struct service *s) {
    char text[4096];
    ssize_t size;
    while ((size = recv(s->notify, text, sizeof text - 1, MSG_DONTWAIT)) > 0) {
        text[size] = 0;
        char *at = strstr(text, "READY=1");
        if (!at || (at != text && at[-1] != '\n')) continue;
        if (!s->ready) s->since = now_ms();
        s->ready = 1;
        for (int i = 0; i < client_count; i++)
            if (clients[i].wish == READY && clients[i].service == s) {
                answer(clients[i].fd, "ready");
                clients[i].wish = NOTHING;
            }
    }
}

static void accept_client(int listener) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    int big = MAX_MESSAGE * 2;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) || peer.uid != 0) {
        close(fd);
        return;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
    clients[client_count++] = (struct client){.fd = fd};
}

/* Those that find no room wait in the listener's queue until somebody hangs up. */
static int has_room(void) {
    return client_count < MAX_CLIENTS &&
           (client_count == 0 || client_count + service_count + SPARE_FILES < (long long)open_files.rlim_cur);
}

static int stop_overdue(void) {
    long long now = now_ms(), next = -1;
    for (int i = 0; i < client_count; i++) {
        if (clients[i].wish != STOP) continue;
        if (clients[i].deadline <= now) {
            kill(-clients[i].service->pid, SIGKILL);
            clients[i].deadline = now + 1000;
        }
        if (next < 0 || clients[i].deadline - now < next) next = clients[i].deadline - now;
    }
    return (int)next;
}

__attribute__((noreturn)) static void serve_forever(int listener, int signals) {
    static struct pollfd polled[3 + MAX_CLIENTS + MAX_SERVICES];
    for (;;) {
        int n = 0, first_client, first_service;
        polled[n++] = (struct pollfd){has_room() ? listener : -1, POLLIN, 0}; /* one of -1 is passed over */
        polled[n++] = (struct pollfd){signals, POLLIN, 0};
        polled[n++] = (struct pollfd){maker_fd, POLLIN, 0};
        first_client = n;
        int listened = client_count;
        for (int i = 0; i < listened; i++) polled[n++] = (struct pollfd){clients[i].fd, POLLIN, 0};
        first_service = n;
        for (int i = 0; i < service_count; i++) polled[n++] = (struct pollfd){services[i].notify, POLLIN, 0};
        int known = n - first_service;
        if (poll(polled, n, stop_overdue()) < 0 && errno != EINTR) _exit(1);
        if (polled[2].revents) _exit(0); /* the kernel ends the rest */
        /* Readiness first: a service that says READY and ends at once was ready. */
        for (int i = 0; i < known; i++)
            if (services[i].notify >= 0 && polled[first_service + i].revents & POLLIN) notified(&services[i]);
        if (polled[1].revents & POLLIN) {
            struct signalfd_siginfo info;
            while (read(signals, &info, sizeof info) == sizeof info)
                if (info.ssi_signo != SIGCHLD) _exit(0); /* the kernel ends the rest */
            reap();
        }
        for (int i = listened - 1; i >= 0; i--) /* backwards: dropping moves the last one here */
            if (polled[first_client + i].revents && !receive(&clients[i])) drop_client(i);
        if (polled[0].revents & POLLIN) accept_client(listener);
    }
}

/* Listens, reports that it does, and serves. */
__attribute__((noreturn)) static void begin(int argc, char **argv) {
    sigset_t wanted;
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET_PATH};
    if (getrlimit(RLIMIT_NOFILE, &open_files) == 0) {
        open_files.rlim_cur = open_files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &open_files);
    }
    umask(022);
    sigemptyset(&no_signals);
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigaddset(&wanted, SIGTERM);
    sigaddset(&wanted, SIGINT);
    sigprocmask(SIG_SETMASK, &wanted, NULL);
    int signals = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (signals < 0 || listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) ||
        chmod(SOCKET_PATH, 0600) || listen(listener, 128))
        die("%s", SOCKET_PATH);
    /* ps shows what a node is, not how it was made. */
    for (int i = 6; i < argc; i++) memset(argv[i], 0, strlen(argv[i]));
    prctl(PR_SET_PDEATHSIG, 0); /* before the answer: who asked ends as soon as it has it */
    if (report_fd >= 0 && write(report_fd, "ok", 2) != 2) _exit(1);
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++) dup2(null, i);
    /* Nothing of the caller stays open: a pipe held here would keep its reader waiting. */
    for (int fd = 3; fd < 256; fd++)
        if (fd != signals && fd != listener && fd != maker_fd && !of_tree(fd)) close(fd);
    serve_forever(listener, signals);
}

__attribute__((noreturn)) static void node(int argc, char **argv) {
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* until the node is whole */
    set_up(argc, argv);
    begin(argc, argv);
}

/* Returns the exit status of the one that makes the node or the keeper; `child` is the one that is it. */
static int reported(int from, pid_t child, int tell) {
    char text[1100] = "";
    ssize_t size = 0, more;
    while ((more = read(from, text + size, sizeof text - 1 - size)) > 0) size += more;
    if (size == 2 && !memcmp(text, "ok", 2)) {
        if (tell) printf("%d\n", child);
        return 0;
    }
    kill(child, SIGKILL);
    fprintf(stderr, "testbed-init: %s", size ? text : "it ended while it was setting up\n");
    return 1;
}

/* ------------------------------------------------------------------ the keeper in a container */

/* Removes what is in a folder, except what is mounted there.  Devices tell no mount from another: a
 * bind of the same file system has the same number. */
static void empty_folder(int folder) {
    struct dirent *entry;
    struct statx st;
    DIR *all = fdopendir(folder);
    if (!all) {
        close(folder);
        return;
    }
    while ((entry = readdir(all))) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
        if (statx(folder, name, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st)) continue;
        if (st.stx_attributes & STATX_ATTR_MOUNT_ROOT) continue;
        if (!S_ISDIR(st.stx_mode)) {
            unlinkat(folder, name, 0);
            continue;
        }
        int inner = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (inner >= 0) empty_folder(inner);
        unlinkat(folder, name, AT_REMOVEDIR); /* fails if something is mounted below */
    }
    closedir(all);
}

/* A container that is started again is a machine that boots: its /run is empty.  A pid file of the
 * boot before would name some process of this one.  A /run that is mounted is the user's own. */
static void empty_run(void) {
    struct statx st;
    int own = !statx(AT_FDCWD, "/run", AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st)
        && S_ISDIR(st.stx_mode) && !(st.stx_attributes & STATX_ATTR_MOUNT_ROOT);
    int folder = open(own ? "/run" : "/run/testbed", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder >= 0) empty_folder(folder);
}

/* The container's own id, or a new one; returns 1 for a new one. */
static int find_identity(char id[33]) {
    char text[64] = "";
    int fd = open("/etc/machine-id", O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    snprintf(id, 33, "%.32s", text);
    if (size >= 32 && strspn(id, "0123456789abcdef") == 32) return 0;
    fd = open("/proc/sys/kernel/random/uuid", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) < 36) die("/proc/sys/kernel/random/uuid");
    close(fd);
    size = 0;
    for (const char *p = text; *p && size < 32; p++)
        if (isxdigit(*p)) id[size++] = *p;
    id[32] = 0;
    return 1;
}

/* Makes a machine of the container that this is pid 1 of.  One that is not privileged may mount
 * nothing; then the engine has seen to it that it changes nothing of the machine. */
static void be_machine(void) {
    char id[33];
    struct stat st;
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)) return;
    protect_proc();
    mount(NULL, "/sys", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    int fresh = find_identity(id);
    own_identity(id);
    if (fresh) forget_made();
    if (!stat("/sys/fs/cgroup/cgroup.controllers", &st) && !access("/sys/fs/cgroup/cgroup.procs", W_OK))
        delegate_v2("/sys/fs/cgroup");
    do_mount("none", "/", NULL, MS_REC | MS_SHARED, NULL); /* as in set_up() */
    refuse_calls();
}

static void make_folders(void) {
    make_parents(SOCKET_PATH);
    if (chmod("/run/testbed", 0711)) die("/run/testbed");
    make_parents(NOTIFY_FOLDER);
    if (chmod(NOTIFY_FOLDER, 0700)) die("%s", NOTIFY_FOLDER);
    make_parents(LOG_FOLDER);
}

static int keeper_answers(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET_PATH};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    int answers = fd >= 0 && !connect(fd, (struct sockaddr *)&address, sizeof address);
    if (fd >= 0) close(fd);
    return answers;
}

__attribute__((noreturn)) static void machine(int argc, char **argv) {
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* it need not be pid 1: docker run --init */
    empty_run();
    make_folders();
    be_machine();
    begin(argc, argv);
}

static int keep(int argc, char **argv) {
    int report[2];
    make_folders();
    int lock = open("/run/testbed/keeper.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX)) die("/run/testbed/keeper.lock");
    if (keeper_answers()) return 0;
    unlink(SOCKET_PATH); /* of one that has ended */
    if (pipe2(report, O_CLOEXEC)) die("pipe");
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid == 0) {
        report_fd = report[1];
        setsid();
        prctl(PR_SET_CHILD_SUBREAPER, 1); /* pid 1 need not reap what services leave */
        begin(argc, argv);
    }
    close(report[1]);
    return reported(report[0], pid, 0);
}

int main(int argc, char **argv) {
    int report[2];
    if (is_service_command(program_invocation_short_name))
        return service_command(program_invocation_short_name, argc, argv);
    if (argc == 2 && !strcmp(argv[1], "machine")) machine(argc, argv);
    if (argc == 2 && !strcmp(argv[1], "keep")) return keep(argc, argv);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a caller that is killed leaves a whole node or none */
    if (argc < 6 || argc % 2) {
        fputs("usage: testbed-init KIND LAB NODE DIGEST STATE [OPTION VALUE]...\n"
              "       testbed-init machine | keep\n", stderr);
        return 2;
    }
    for (int i = 6; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "cgroup")) continue;
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/cgroup.procs", argv[i + 1]);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, "0", 1) < 0) die("join %s", argv[i + 1]);
        close(fd);
    }
    for (int i = 6; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "tied")) continue;
        maker_fd = syscall(NR_PIDFD_OPEN, atoi(argv[i + 1]), 0);
        /* Still our parent once it is held: the number is nobody else's. */
        if (maker_fd < 0 || getppid() != atoi(argv[i + 1])) die("tied to %s", argv[i + 1]);
    }
    if (pipe2(report, O_CLOEXEC)) die("pipe");
    int network = option(argc, argv, "network") ? 0 : CLONE_NEWNET;
    if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | network | CLONE_NEWPID | CLONE_NEWCGROUP)) die("unshare");
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid == 0) {
        report_fd = report[1];
        node(argc, argv);
    }
    close(report[1]);
    return reported(report[0], pid, 1);
}
