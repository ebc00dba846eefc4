/* A Modbus device that is not ours: libmodbus answers, over TCP or on a serial port.
 *
 * Build:  gcc -Wall -o libmodbus_peer libmodbus_peer.c -lmodbus
 * Run:    ./libmodbus_peer tcp PORT   or   ./libmodbus_peer rtu DEVICE BAUDRATE UNIT
 *
 * Registers and bits 0 to 999 of all four tables: (address * 2654435761 >> 7) & 0xFFFF, for bits the lowest of it; input
 * tables hold the same plus one. Registers 600 to 605: 0, 0, 0x1234, 0x5678, 0, 0. What lies beyond is refused by libmodbus.
 * At SIGTERM the function codes that were heard are printed, one a line, then it ends with 0.
 */
#include <errno.h>
#include <modbus/modbus.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 1000 };
static volatile sig_atomic_t over;
static char heard[256];

static void stop(int number)
{
    (void)number;
    over = 1;
}

static uint16_t truth(uint32_t address)
{
    return (uint16_t)((uint64_t)address * 2654435761u >> 7);
}

static void fill(modbus_mapping_t *map)
{
    static const uint16_t known[] = {0, 0, 0x1234, 0x5678, 0, 0};
    for (uint32_t a = 0; a < SIZE; a++) {
        map->tab_registers[a] = truth(a);
        map->tab_input_registers[a] = (uint16_t)(truth(a) + 1);
        map->tab_bits[a] = truth(a) & 1;
        map->tab_input_bits[a] = (uint8_t)((truth(a) + 1) & 1);
    }
    memcpy(map->tab_registers + 600, known, sizeof known);
}

/* Answer until the other end is gone. */
static void serve(modbus_t *context, modbus_mapping_t *map)
{
    uint8_t request[MODBUS_TCP_MAX_ADU_LENGTH];
    while (!over) {
        int size = modbus_receive(context, request);
        if (size > 0) {
            heard[request[modbus_get_header_length(context)]] = 1;
            modbus_reply(context, request, size, map);
        } else if (size < 0 && errno != EMBBADCRC && errno != ETIMEDOUT) {
            return;
        }
    }
}

int main(int count, char **words)
{
    if (count < 3)
        return 2;
    int serial = strcmp(words[1], "rtu") == 0;
    struct sigaction action = {.sa_handler = stop}; /* without SA_RESTART: accept ends */
    sigaction(SIGTERM, &action, NULL);
    modbus_mapping_t *map = modbus_mapping_new(SIZE, SIZE, SIZE, SIZE);
    modbus_t *context = serial ? modbus_new_rtu(words[2], atoi(words[3]), 'N', 8, 1)
                               : modbus_new_tcp("127.0.0.1", atoi(words[2]));
    if (map == NULL || context == NULL)
        return 1;
    fill(map);
    modbus_set_indication_timeout(context, 0, 50000); /* its own wait for requests goes on after a signal */
    if (serial) {
        modbus_set_slave(context, atoi(words[4]));
        if (modbus_connect(context) < 0) {
            perror(words[2]);
            return 1;
        }
        puts("ready");
        fflush(stdout);
        serve(context, map);
    } else {
        int listening = modbus_tcp_listen(context, 5);
        if (listening < 0) {
            perror(words[2]);
            return 1;
        }
        puts("ready");
        fflush(stdout);
        while (!over && modbus_tcp_accept(context, &listening) >= 0) {
            serve(context, map);
            modbus_close(context);
        }
    }
    for (int code = 0; code < 256; code++)
        if (heard[code])
            printf("%d\n", code);
    return 0;
}
