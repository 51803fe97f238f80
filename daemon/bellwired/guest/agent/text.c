/* Strings and memory. gcc may call memcpy and memset by itself, so they are here too. */
#include "system.h"

#include <asm/errno.h>

void *memcpy(void *to, const void *from, size_t length)
{
    char *target = to;
    const char *source = from;
    while (length--)
        *target++ = *source++;
    return to;
}

void *memset(void *to, int value, size_t length)
{
    char *target = to;
    while (length--)
        *target++ = (char)value;
    return to;
}

void copy(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
}

size_t length_of(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

int equal(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

/* Make the folders above path. Returns 0 or a negated errno. */
long make_parents(const char *path)
{
    char folder[4096];
    size_t length = length_of(path);
    if (length >= sizeof folder)
        return -ENAMETOOLONG;
    for (size_t at = 1; at < length; at++) {
        if (path[at] != '/')
            continue;
        memcpy(folder, path, at);
        folder[at] = 0;
        long result = sys_mkdir(folder, 0755);
        if (result < 0 && result != -EEXIST && result != -EROFS)
            return result;
    }
    return 0;
}
