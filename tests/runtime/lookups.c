// Preloaded, it fails every lookup of a host, and writes down in the file $LOOKUPS what was asked.
// The address of this machine, which tests serve at, is none to look up.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Lookup(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static void note(const char *name) {
    FILE *file = fopen(getenv("LOOKUPS"), "a");
    if (!file)
        abort();
    fprintf(file, "%s\n", name ? name : "");
    fclose(file);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    if (name && !strcmp(name, "127.0.0.1"))
        return ((Lookup *)dlsym(RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
    note(name);
    return EAI_FAIL;
}

struct hostent *gethostbyname(const char *name) {
    note(name);
    return NULL;
}
