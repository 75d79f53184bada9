/*
 * The memory that malloc takes of the system over the events of a trace; LD_PRELOAD says whose malloc.
 *
 * residence <file> <steps> <library>: the file has six int64 (events, objects, threads, fill, 0, 0), then an int64 for each
 * event (object << 8 | thread << 1 | is free), then an int64 for each object, its bytes.  With fill every byte of an object is
 * written, else a stamp.  The answer is "<is the library there> <mismatches>", and the resident bytes above those before the
 * first event: after each step, and when all is freed.  Nothing else here uses malloc until the last sample is taken.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_STEPS 4096
#define MOST_THREADS 64

static const int64_t *events, *sizes;
static int64_t n_events, n_objects, n_threads, fill, n_steps;
static _Atomic(char *) *handles;
static atomic_long mismatches;
static pthread_barrier_t begin, end;
static int64_t samples[MOST_STEPS + 1];

static void stamp(char *at, int64_t obj) {
    if (sizes[obj] >= 8)
        memcpy(at, &obj, 8);
    else
        *at = (char)obj;
}

static int has_stamp(const char *at, int64_t obj) {
    return sizes[obj] >= 8 ? memcmp(at, &obj, 8) == 0 : *at == (char)obj;
}

static void release(int64_t obj, char *at) {
    mismatches += !has_stamp(at, obj);
    atomic_store(&handles[obj], NULL);
    free(at);
}

static void *run(void *number) {
    int64_t me = (int64_t)(intptr_t)number, done = 0;
    for (int64_t step = 1; step <= n_steps + 1; step++) {
        pthread_barrier_wait(&begin);
        for (int64_t upto = n_events * step / n_steps; step <= n_steps && done < upto; done++) {
            int64_t event = events[done], obj = event >> 8;
            if ((event >> 1 & 127) != me)
                continue;
            if (event & 1) {
                char *at;
                while (!(at = atomic_load(&handles[obj])))
                    sched_yield();
                release(obj, at);
            } else {
                char *at = malloc(sizes[obj]);
                if (!at)
                    abort();
                if (fill)
                    memset(at, 0, sizes[obj]);
                stamp(at, obj);
                atomic_store(&handles[obj], at);
            }
        }
        if (step > n_steps) /* what is live, by the thread that allocated it */
            for (int64_t i = 0; i < n_events; i++) {
                int64_t obj = events[i] >> 8;
                char *at = events[i] & 1 || (events[i] >> 1 & 127) != me ? NULL : atomic_load(&handles[obj]);
                if (at)
                    release(obj, at);
            }
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static int64_t resident(void) {
    static char text[4096];
    int file = open("/proc/self/smaps_rollup", O_RDONLY);
    ssize_t n = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (n < 0)
        exit(2);
    close(file);
    text[n] = 0;
    char *at = strstr(text, "Rss:");
    return at ? atoll(at + 4) << 10 : -1;
}

static int is_loaded(const char *library) {
    char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    int found = 0;
    while (maps && fgets(line, sizeof line, maps))
        found |= strstr(line, library) != NULL;
    return found;
}

int main(int argc, char **argv) {
    struct stat about;
    int file = argc == 4 ? open(argv[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &about))
        return 2;
    const int64_t *words = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (words == MAP_FAILED)
        return 2;
    n_events = words[0], n_objects = words[1], n_threads = words[2], fill = words[3], n_steps = atoll(argv[2]);
    if (n_threads > MOST_THREADS || n_steps > MOST_STEPS || n_steps < 1 || about.st_size != 8 * (6 + n_events + n_objects))
        return 2;
    events = words + 6, sizes = events + n_events;
    handles = mmap(NULL, 8 * n_objects + 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (handles == MAP_FAILED)
        return 2;
    pthread_barrier_init(&begin, NULL, n_threads + 1);
    pthread_barrier_init(&end, NULL, n_threads + 1);
    pthread_t threads[MOST_THREADS];
    for (int64_t t = 0; t < n_threads; t++)
        if (pthread_create(&threads[t], NULL, run, (void *)(intptr_t)t))
            return 2;
    int64_t before = (resident(), resident());
    for (int64_t step = 0; step <= n_steps; step++) {
        pthread_barrier_wait(&begin);
        pthread_barrier_wait(&end);
        samples[step] = resident() - before;
    }
    for (int64_t t = 0; t < n_threads; t++)
        pthread_join(threads[t], NULL);
    printf("%d %ld", is_loaded(argv[3]), (long)mismatches);
    for (int64_t step = 0; step <= n_steps; step++)
        printf(" %lld", (long long)samples[step]);
    printf("\n");
    return 0;
}
