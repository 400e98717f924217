/* The first process of every Pod: it holds the Pod's namespaces, and reaps what the Pod's
 * containers leave behind where they share its pid namespace. */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
    sigset_t set;
    int signum;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    /* Blocked before anything can arrive: none is lost, and no handler races with the wait. */
    sigprocmask(SIG_BLOCK, &set, NULL);
    while (sigwait(&set, &signum) == 0) {
        if (signum != SIGCHLD) return 0;
        while (waitpid(-1, NULL, WNOHANG) > 0) continue;
    }
    return 1;
}
