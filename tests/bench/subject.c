// SPDX-License-Identifier: Apache-2.0
//
// The process whose memory is moved: memory of one kind, and a thread that writes to it and times each write.
//
//     subject base|thp|memfd|hugetlb BYTES NUMA_NODE WRITER_CPU
//
// Prints "ready ADDRESS", then obeys lines: "write" starts the writer, "rest" ends it and prints what it measured
// (writes, and nanoseconds: p50 p99 p999 longest), "check" prints how many pages hold something else than they should.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, HUGE = 2 << 20, PREFERRED = 1, STEPS = 16, BUCKETS = 40 * STEPS };

static volatile uint64_t *words;
static size_t pages;
static atomic_int writing;
static uint64_t buckets[BUCKETS], longest, writes;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// Logarithmic buckets, 16 to each doubling.
static unsigned bucket_of(uint64_t nanoseconds)
{
	unsigned power = 63 - (unsigned)__builtin_clzll(nanoseconds | 1);
	unsigned step = power >= 4 ? (nanoseconds >> (power - 4)) & (STEPS - 1) : 0;
	unsigned bucket = power * STEPS + step;
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double quantile(double share)
{
	uint64_t seen = 0;
	for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
		seen += buckets[bucket];
		if (seen >= share * (double)writes)
			return (double)(1ull << (bucket / STEPS)) * (1 + (double)(bucket % STEPS) / STEPS);
	}
	return 0;
}

static void *writer(void *cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET((int)(intptr_t)cpu, &set);
	sched_setaffinity(0, sizeof set, &set);
	uint64_t random = 88172645463325252ull;
	while (writing) {
		random ^= random << 13, random ^= random >> 7, random ^= random << 17;
		volatile uint64_t *word = words + (random % pages) * (PAGE / 8) + 1;
		uint64_t begin = now();
		*word += 1;
		uint64_t taken = now() - begin;
		buckets[bucket_of(taken)]++;
		writes++;
		if (taken > longest)
			longest = taken;
	}
	return NULL;
}

static void *memory(const char *kind, size_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, file = -1;
	if (!strcmp(kind, "memfd")) {
		file = memfd_create("ram", 0);
		if (file < 0 || ftruncate(file, (off_t)size))
			fail("memfd");
		flags = MAP_SHARED;
	} else if (!strcmp(kind, "hugetlb")) {
		flags |= MAP_HUGETLB;
	}
	/* Nothing may lie next to it: a thread's stack would become one mapping with it, from Linux 6.7 on. */
	char *room = mmap(NULL, size + 3 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (room == MAP_FAILED)
		fail("mmap");
	char *area = room + HUGE + -(uintptr_t)room % HUGE;
	if (mmap(area, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file, 0) == MAP_FAILED)
		fail("mmap");
	if (!strcmp(kind, "base") || !strcmp(kind, "thp")) {
		if (madvise(area, size, kind[0] == 't' ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
			fail("madvise");
	}
	return area;
}

int main(int count, char **words_given)
{
	if (count != 5)
		return 2;
	size_t size = strtoull(words_given[2], NULL, 10);
	unsigned long mask = 1ul << atoi(words_given[3]);
	if (syscall(SYS_set_mempolicy, PREFERRED, &mask, 64ul))
		fail("set_mempolicy");
	words = memory(words_given[1], size);
	pages = size / PAGE;
	for (size_t page = 0; page < pages; page++)
		words[page * (PAGE / 8)] = page;
	if (syscall(SYS_set_mempolicy, 0, NULL, 0ul))
		fail("set_mempolicy");
	printf("ready %lu\n", (unsigned long)words);
	fflush(stdout);

	pthread_t thread;
	char line[64];
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "write\n")) {
			memset(buckets, 0, sizeof buckets);
			longest = writes = 0;
			writing = 1;
			if (pthread_create(&thread, NULL, writer, (void *)(intptr_t)atoi(words_given[4])))
				fail("pthread_create");
			printf("writing\n");
		} else if (!strcmp(line, "rest\n")) {
			writing = 0;
			pthread_join(thread, NULL);
			printf("%lu %.0f %.0f %.0f %lu\n", (unsigned long)writes, quantile(.5), quantile(.99), quantile(.999),
			       (unsigned long)longest);
		} else if (!strcmp(line, "check\n")) {
			size_t wrong = 0;
			for (size_t page = 0; page < pages; page++)
				wrong += words[page * (PAGE / 8)] != page;
			printf("%zu\n", wrong);
		}
		fflush(stdout);
	}
	return 0;
}
