/*
 * DPDK's rte_mempool, asked line by line.
 *
 * A line is "<cached> <bulk> <keep> <repeats>": get <keep> objects in bulks, put them back in bulks, again and again, once
 * more than so often, for the first is not timed.  The answer is "<ns> <distinct> <missing>": the time of all of it, how many different objects the last turn held, and how many objects
 * the pool lacks afterwards.  It ends with its input.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_mempool.h>

#define OBJECT 64
#define OBJECTS 65535 /* 2^n - 1: what a ring holds */
#define MOST 32768

static void *held[MOST];

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Inlined with a constant bulk, as a program that knows it would be. */
static __rte_always_inline int turns(struct rte_mempool *pool, unsigned int bulk, unsigned int keep, long repeats)
{
	for (long turn = 0; turn < repeats; turn++) {
		for (unsigned int at = 0; at < keep; at += bulk)
			if (rte_mempool_get_bulk(pool, &held[at], bulk) < 0)
				return -1;
		for (unsigned int at = 0; at < keep; at += bulk)
			rte_mempool_put_bulk(pool, &held[at], bulk);
	}
	return 0;
}

static int run(struct rte_mempool *pool, unsigned int bulk, unsigned int keep, long repeats)
{
	switch (bulk) {
	case 1: return turns(pool, 1, keep, repeats);
	case 4: return turns(pool, 4, keep, repeats);
	case 8: return turns(pool, 8, keep, repeats);
	case 32: return turns(pool, 32, keep, repeats);
	case 128: return turns(pool, 128, keep, repeats);
	case 256: return turns(pool, 256, keep, repeats);
	default: return -1;
	}
}

/* How many of the objects held last are different: each is written to, then read back. */
static unsigned int distinct(unsigned int keep)
{
	unsigned int found = 0;
	for (unsigned int i = 0; i < keep; i++)
		*(uint32_t *)held[i] = i;
	for (unsigned int i = 0; i < keep; i++)
		found += *(uint32_t *)held[i] == i;
	return found;
}

int main(int argc, char **argv)
{
	unsigned int cached, bulk, keep;
	long repeats;
	struct rte_mempool *pools[2];

	if (rte_eal_init(argc, argv) < 0)
		return EXIT_FAILURE;
	pools[0] = rte_mempool_create("plain", OBJECTS, OBJECT, 0, 0, NULL, NULL, NULL, NULL, SOCKET_ID_ANY, 0);
	pools[1] = rte_mempool_create("cached", OBJECTS, OBJECT, RTE_MEMPOOL_CACHE_MAX_SIZE, 0, NULL, NULL, NULL, NULL,
				      SOCKET_ID_ANY, 0);
	if (pools[0] == NULL || pools[1] == NULL)
		return EXIT_FAILURE;
	while (scanf("%u %u %u %ld", &cached, &bulk, &keep, &repeats) == 4) {
		struct rte_mempool *pool = pools[cached != 0];
		int64_t start, end;

		if (keep > MOST || bulk == 0 || keep % bulk != 0)
			return EXIT_FAILURE;
		if (run(pool, bulk, keep, 1) < 0)
			return EXIT_FAILURE;
		start = now();
		if (run(pool, bulk, keep, repeats) < 0)
			return EXIT_FAILURE;
		end = now();
		printf("%lld %u %u\n", (long long)(end - start), distinct(keep), OBJECTS - rte_mempool_avail_count(pool));
		fflush(stdout);
	}
	rte_eal_cleanup();
	return EXIT_SUCCESS;
}
