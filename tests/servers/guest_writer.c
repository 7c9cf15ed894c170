/* A database in small, run in the test guest: `record-writer PORT FILE…`
 *
 * Appends record after record to every FILE, in this order, and brings each to the disk (fsync) before the next. Only then it
 * acknowledges the record's number on PORT, a line of text: whoever was told a number was promised that record.
 *
 *     record: 1504 bytes = 188 times 8, little endian: the number from 1, then number × STEP, then that plus 1, plus 2, …, and the
 *     exclusive or of all of these: every byte is known from the number, and no two records are alike
 *
 * guest_writer.py reads the records back. The program ends by itself after RECORDS_MAX, or when a write fails.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

enum { WORDS = 188, RECORD_BYTES = 8 * WORDS, RECORDS_MAX = 10000, FILES_MAX = 4, PAUSE_MICROSECONDS = 1000 };

static void fill(uint64_t *record, uint64_t number) {
    record[0] = record[WORDS - 1] = number;
    for (uint64_t at = 1; at < WORDS - 1; at++)
        record[WORDS - 1] ^= record[at] = number * 0x9e3779b97f4a7c15u + at - 1;
}

int main(int count, char **names) {
    uint64_t record[WORDS];
    int files[FILES_MAX], used = 0, port = count > 2 ? open(names[1], O_WRONLY) : -1;
    for (int at = 2; at < count && used < FILES_MAX; at++)
        if ((files[used++] = open(names[at], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600)) < 0)
            return 1;
    if (port < 0)
        return 1;
    for (uint64_t number = 1; number <= RECORDS_MAX; number++) {
        fill(record, number);
        for (int at = 0; at < used; at++)
            if (write(files[at], record, RECORD_BYTES) != RECORD_BYTES || fsync(files[at]) != 0)
                return 1;
        if (dprintf(port, "%llu\n", (unsigned long long)number) < 0)
            return 1;
        usleep(PAUSE_MICROSECONDS);
    }
    return 0;
}
