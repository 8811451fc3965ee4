// SPDX-License-Identifier: Apache-2.0
//
// The plainest mover there is, to be compared with: one thread, move_pages(2) over every page of a range.
//
//     move_loop PID ADDRESS BYTES NUMA_NODE PAGE_SIZE
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { AT_ONCE = 1024, MOVE_ALL = 1 << 2 };

int main(int count, char **words)
{
	if (count != 6)
		return 2;
	long pid = atol(words[1]), page_size = atol(words[5]);
	char *address = (char *)strtoul(words[2], NULL, 10), *end = address + strtoul(words[3], NULL, 10);
	void *pages[AT_ONCE];
	int nodes[AT_ONCE], status[AT_ONCE];
	while (address < end) {
		unsigned long number = 0;
		for (; number < AT_ONCE && address < end; number++, address += page_size) {
			pages[number] = address;
			nodes[number] = atoi(words[4]);
		}
		if (syscall(SYS_move_pages, pid, number, pages, nodes, status, MOVE_ALL) < 0) {
			perror("move_pages");
			return 1;
		}
	}
	return 0;
}
