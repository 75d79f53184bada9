/*
 * PMDK's libpmemobj, asked line by line: records of 64 bytes in a pool, changed by transactions.
 *
 * The arguments are the pool's file, and the MiB that a new one gets.  Records are numbered in the order in which they came;
 * a record holds its value and its number.  Where each record is stands in an array of this process, made anew when the pool is
 * opened: a transaction writes records and what the allocator needs, no index.  The records are of an allocation class of their
 * own, 64 bytes without a header: the least that PMDK writes.
 *
 *   count               how many records there are, and whether stores are flushed from the CPU's caches (1) or by msync (0)
 *   insert <n> <turns>  <turns> transactions of <n> allocs, each record written: ns
 *   remove <n>          free the newest <n> in one transaction: how many are left
 *   update <n> <number> <value> ...  write <n> records in one transaction: ns
 *   values <n> <number> ...          the values of <n> records
 *   pair <n>            alloc and free one record, each atomic by itself, <n> times: ns
 *
 * It ends with its input.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpmem.h>
#include <libpmemobj.h>

#define LAYOUT "jitslab-bench"
#define UNITS 4096 /* of a block of the class: the transactions rarely fetch one */

struct record {
	int64_t value;
	int64_t number;
	char pad[48];
};

static PMEMobjpool *pool;
static uint64_t pool_id, class_flag, *where; /* offset of every record */
static int64_t count, room;

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, pmemobj_errormsg());
	exit(EXIT_FAILURE);
}

static PMEMoid oid_of(int64_t number)
{
	return (PMEMoid){pool_id, where[number]};
}

static struct record *record_of(int64_t number)
{
	if (number < 0 || number >= count)
		fail("no such record");
	return pmemobj_direct(oid_of(number));
}

/* Make room for the places of so many more records. */
static void reserve(int64_t n)
{
	if (count + n <= room)
		return;
	room = 2 * (count + n);
	where = realloc(where, room * sizeof *where);
	if (where == NULL)
		fail("no memory");
}

static void open_pool(const char *path, size_t mib)
{
	struct pobj_alloc_class_desc class = {sizeof(struct record), 64, UNITS, POBJ_HEADER_NONE, 0};
	int64_t found = 0;
	PMEMoid oid;

	pool = access(path, F_OK) == 0 ? pmemobj_open(path, LAYOUT) : pmemobj_create(path, LAYOUT, mib << 20, 0600);
	if (pool == NULL)
		fail(path);
	if (pmemobj_ctl_set(pool, "heap.alloc_class.new.desc", &class) != 0)
		fail("allocation class");
	class_flag = POBJ_CLASS_ID(class.class_id);
	pool_id = pmemobj_oid(pool).pool_uuid_lo;
	POBJ_FOREACH(pool, oid)
		found++;
	reserve(found);
	count = found;
	POBJ_FOREACH(pool, oid) {
		int64_t number = ((struct record *)pmemobj_direct(oid))->number;
		if (number < 0 || number >= found)
			fail("number out of range");
		where[number] = oid.off;
	}
}

static int64_t insert(int64_t n, int64_t turns)
{
	int64_t start;

	reserve(n * turns);
	start = now();
	for (int64_t turn = 0; turn < turns; turn++) {
		TX_BEGIN(pool) {
			for (int64_t i = 0; i < n; i++) {
				struct record made = {count + i, count + i, {0}};
				PMEMoid oid = pmemobj_tx_xalloc(sizeof made, 0, class_flag);
				memcpy(pmemobj_direct(oid), &made, sizeof made); /* flushed when the transaction ends */
				where[count + i] = oid.off;
			}
		} TX_ONABORT {
			fail("insert");
		} TX_END
		count += n;
	}
	return now() - start;
}

static void take_away(int64_t n)
{
	if (n < 0 || n > count)
		fail("not so many records");
	TX_BEGIN(pool) {
		for (int64_t i = count - n; i < count; i++)
			pmemobj_tx_free(oid_of(i));
	} TX_ONABORT {
		fail("remove");
	} TX_END
	count -= n;
}

static int64_t update(int64_t n, const int64_t (*changes)[2])
{
	int64_t start = now();

	TX_BEGIN(pool) {
		for (int64_t i = 0; i < n; i++) {
			struct record *record = record_of(changes[i][0]);
			struct record made = {changes[i][1], changes[i][0], {0}};
			pmemobj_tx_add_range_direct(record, sizeof made);
			memcpy(record, &made, sizeof made);
		}
	} TX_ONABORT {
		fail("update");
	} TX_END
	return now() - start;
}

static int64_t pair(int64_t n)
{
	int64_t start = now();

	for (int64_t i = 0; i < n; i++) {
		PMEMoid oid;
		if (pmemobj_xalloc(pool, &oid, sizeof(struct record), 0, class_flag, NULL, NULL) != 0)
			fail("pair");
		((struct record *)pmemobj_direct(oid))->value = i;
		pmemobj_free(&oid);
	}
	return now() - start;
}

/* Read numbers of this line; the caller frees them. */
static int64_t *numbers(int64_t n)
{
	int64_t *read = malloc((n > 0 ? n : 1) * sizeof *read);

	for (int64_t i = 0; i < n; i++)
		if (read == NULL || scanf("%ld", &read[i]) != 1)
			fail("numbers");
	return read;
}

int main(int argc, char **argv)
{
	char word[16];

	if (argc != 3)
		return EXIT_FAILURE;
	open_pool(argv[1], strtoul(argv[2], NULL, 10));
	while (scanf("%15s", word) == 1) {
		int64_t n = 0, turns = 0, *read = NULL;

		if (strcmp(word, "count") == 0) {
			printf("%ld %d\n", count, pmem_is_pmem(pool, 4096));
		} else if (scanf("%ld", &n) != 1 || n < 0) {
			fail(word);
		} else if (strcmp(word, "insert") == 0) {
			if (scanf("%ld", &turns) != 1 || turns < 0)
				fail(word);
			printf("%ld\n", insert(n, turns));
		} else if (strcmp(word, "remove") == 0) {
			take_away(n);
			printf("%ld\n", count);
		} else if (strcmp(word, "update") == 0) {
			read = numbers(2 * n);
			printf("%ld\n", update(n, (const int64_t (*)[2])read));
		} else if (strcmp(word, "values") == 0) {
			read = numbers(n);
			for (int64_t i = 0; i < n; i++)
				printf("%ld ", record_of(read[i])->value);
			printf("\n");
		} else if (strcmp(word, "pair") == 0) {
			printf("%ld\n", pair(n));
		} else {
			fail(word);
		}
		free(read);
		fflush(stdout);
	}
	pmemobj_close(pool);
	return EXIT_SUCCESS;
}
