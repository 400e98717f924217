/* What testbed-init, pid 1 of a node, and the commands that ask it have in common. */

#define MAX_MESSAGE (192 * 1024)
#define MAX_FIELDS 8192
#define MAX_SERVICES 64
#define SOCKET_PATH "/run/testbed/init.sock"
#define LOG_FOLDER "/var/log/testbed/"
#define UNITS_FOLDER "/run/testbed/units" /* see UNITS in nodes/base.py */

/* True for a name of the program by which it is one of those commands. */
int is_service_command(const char *name);

/* One of them, by its name; returns its exit status. */
int service_command(const char *name, int argc, char **argv);
