/* schema_format.c - the formats of strings that are more than annotations, as patterns of the whole
 * string. */
#include <string.h>

#include "grammar/schema_parts.h"

#define YEAR "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
#define LEAP "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
#define DATE                                                                                             \
    "(?:" YEAR "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)" \
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))|" LEAP "-02-29)"
#define TIME \
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define LABEL "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?"
#define HOST LABEL "(?:\\." LABEL "){0,3}"
#define GROUP "[0-9a-fA-F]{1,4}"

static const struct {
    const char *name, *pattern;
} formats[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "T" TIME},
    {"duration", "P(?:[0-9]{1,6}W|(?:[0-9]{1,6}Y(?:[0-9]{1,6}M(?:[0-9]{1,6}D)?)?|[0-9]{1,6}M(?:[0-9]{1,6}D)?"
                 "|[0-9]{1,6}D)(?:T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?"
                 "|[0-9]{1,6}S))?|T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?"
                 "|[0-9]{1,6}S))"},
    {"uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"},
    {"email", "[a-zA-Z0-9_+-]{1,16}(?:\\.[a-zA-Z0-9_+-]{1,16}){0,2}@" HOST "\\.[a-zA-Z]{2,10}"},
    {"hostname", HOST},
    {"ipv4", BYTE "\\." BYTE "\\." BYTE "\\." BYTE},
    {"ipv6", "(?:" GROUP ":){7}" GROUP "|(?:" GROUP ":){1,3}:" GROUP "(?::" GROUP "){0,2}|::(?:" GROUP
             "(?::" GROUP "){0,3})?"},
    {"uri",
     "https?://" HOST "(?::[1-9][0-9]{0,3})?(?:/[a-zA-Z0-9._~-]{0,64}){0,16}(?:\\?[a-zA-Z0-9._~=&-]{0,256})?"
     "(?:#[a-zA-Z0-9._~-]{0,64})?"},
};

const char *mb_format_pattern(const char *format) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(format, formats[i].name) == 0)
            return formats[i].pattern;
    return NULL;
}
