package peer;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;

/**
 * What an account did in its last 24 hours and 30 days, in one row of bytes, and the features read from it.
 *
 * <p>The buckets, their order and their arithmetic are those of weir/features/_account_kernels.py: float32
 * sums, 16-bit counts, all else in double. The row lacks the account's key, which is the store's, and the
 * days of known frauds, since the peer reads no labels.
 *
 * <pre>
 * newest ms i64 | newest hour i32 | first hour i32 | hour sum 24 f32 | day sum 30 f32 |
 * day sum of squares 30 f32 | hour count 24 u16 | day count 30 u16
 * </pre>
 */
final class AccountWindow {
    static final int HOURS = 24;
    static final int DAYS = 30;
    static final long HOUR_MS = 3_600_000L;
    private static final double IDLE_MAX_S = DAYS * 86_400.0;
    private static final double RATIO_MAX = 1000.0;
    private static final double AMOUNT_LEAST = 0.01;
    // A payment is high above so many times the usual amount; no day counts with more than that a payment.
    private static final double HIGH_TIMES = 2.5;
    private static final int HIGH_DAYS = 7;
    // How far a sum in 32 bits may be off for each amount that was added, of itself.
    private static final double ROUNDING = 0x1.0p-23;

    private static final int NEWEST_MS = 0;
    private static final int NEWEST_HOUR = 8;
    private static final int FIRST_HOUR = 12;
    private static final int HOUR_SUM = 16;
    private static final int DAY_SUM = HOUR_SUM + 4 * HOURS;
    private static final int DAY_SQUARE = DAY_SUM + 4 * DAYS;
    private static final int HOUR_COUNT = DAY_SQUARE + 4 * DAYS;
    private static final int DAY_COUNT = HOUR_COUNT + 2 * HOURS;
    static final int BYTES = DAY_COUNT + 2 * DAYS;
    private static final int COUNT_MAX = 65_535;

    private static final VarHandle I64 = view(long[].class);
    private static final VarHandle I32 = view(int[].class);
    private static final VarHandle F32 = view(float[].class);
    private static final VarHandle U16 = view(char[].class);

    private AccountWindow() {}

    private static VarHandle view(Class<?> type) {
        return MethodHandles.byteArrayViewVarHandle(type, ByteOrder.LITTLE_ENDIAN);
    }

    /** A row for an account that is seen for the first time, at this hour. */
    static byte[] create(long hour) {
        byte[] row = new byte[BYTES];
        I64.set(row, NEWEST_MS, -1L);
        I32.set(row, NEWEST_HOUR, (int) hour);
        I32.set(row, FIRST_HOUR, (int) hour);
        return row;
    }

    /** Whether the row's newest day is over {@code ringDays} before {@code day}: then the account is new. */
    static boolean isForgotten(byte[] row, long day, int ringDays) {
        return day - (int) I32.get(row, NEWEST_HOUR) / HOURS > ringDays;
    }

    /** Empty the buckets between the row's newest hour and {@code hour}; nothing when that is not later. */
    static void roll(byte[] row, long hour) {
        long newest = (int) I32.get(row, NEWEST_HOUR);
        if (hour <= newest) {
            return;
        }
        I32.set(row, NEWEST_HOUR, (int) hour);
        for (long ahead = newest + 1; ahead <= newest + Math.min(hour - newest, HOURS); ahead++) {
            int slot = (int) (ahead % HOURS);
            F32.set(row, HOUR_SUM + 4 * slot, 0.0f);
            U16.set(row, HOUR_COUNT + 2 * slot, (char) 0);
        }
        long newestDay = newest / HOURS;
        long day = hour / HOURS;
        for (long ahead = newestDay + 1; ahead <= newestDay + Math.min(day - newestDay, DAYS); ahead++) {
            int slot = (int) (ahead % DAYS);
            F32.set(row, DAY_SUM + 4 * slot, 0.0f);
            F32.set(row, DAY_SQUARE + 4 * slot, 0.0f);
            U16.set(row, DAY_COUNT + 2 * slot, (char) 0);
        }
    }

    /**
     * Features 9 to 22 but for 20, its known frauds: what the account did before a payment of {@code x} at
     * {@code eventMs}.
     */
    static void features(byte[] row, double x, long eventMs, float[] out) {
        long hour = (int) I32.get(row, NEWEST_HOUR);
        long day = hour / HOURS;
        long count1d = 0;
        double sum1d = 0.0;
        for (int slot = 0; slot < HOURS; slot++) {
            count1d += (char) U16.get(row, HOUR_COUNT + 2 * slot);
            sum1d += (float) F32.get(row, HOUR_SUM + 4 * slot);
        }
        long count30d = 0;
        double sum30d = 0.0;
        double square30d = 0.0;
        for (int slot = 0; slot < DAYS; slot++) {
            count30d += (char) U16.get(row, DAY_COUNT + 2 * slot);
            sum30d += (float) F32.get(row, DAY_SUM + 4 * slot);
            square30d += (float) F32.get(row, DAY_SQUARE + 4 * slot);
        }
        long count7d = 0;
        double sum7d = 0.0;
        int at = (int) (day % DAYS);
        for (int back = 0; back < 7; back++) {
            count7d += (char) U16.get(row, DAY_COUNT + 2 * at);
            sum7d += (float) F32.get(row, DAY_SUM + 4 * at);
            at = at > 0 ? at - 1 : DAYS - 1;
        }
        out[9] = (char) U16.get(row, HOUR_COUNT + 2 * (int) (hour % HOURS));
        out[10] = count1d;
        out[11] = count7d;
        out[12] = count30d;
        out[13] = count1d > 0 ? (float) (sum1d / count1d) : 0.0f;
        out[14] = count7d > 0 ? (float) (sum7d / count7d) : 0.0f;
        double mean30d = 0.0;
        double ratio = 1.0;
        double zscore = 0.0;
        if (count30d > 0) {
            mean30d = sum30d / count30d;
            double deviation = Math.sqrt(Math.max(square30d / count30d - mean30d * mean30d, 0.0));
            deviation = Math.max(Math.max(deviation, 0.1 * mean30d), 1.0);
            ratio = Math.min(x / Math.max(mean30d, AMOUNT_LEAST), RATIO_MAX);
            zscore = Math.min(Math.max((x - mean30d) / deviation, -100.0), 100.0);
        }
        out[15] = (float) mean30d;
        out[16] = (float) ratio;
        out[17] = (float) zscore;
        double idleS = IDLE_MAX_S;
        double ageDays = 0.0;
        long newestMs = (long) I64.get(row, NEWEST_MS);
        if (newestMs >= 0) {
            idleS = Math.min(Math.max((eventMs - newestMs) / 1000.0, 0.0), IDLE_MAX_S);
            ageDays = Math.min((hour - (int) I32.get(row, FIRST_HOUR)) / (double) HOURS, DAYS);
        }
        out[18] = (float) Math.log1p(idleS);
        out[19] = (float) ageDays;
        out[21] = 1.0f;
        out[22] = 0.0f;
        if (count30d > 0) {
            high(row, day, usual(row, count30d, sum30d), out);
        }
    }

    /** The mean of 30 days in which no day weighs with more than 2.5 times itself, found in two steps. */
    private static double usual(byte[] row, long count, double total) {
        double usual = Math.max(total / count, AMOUNT_LEAST);
        for (int step = 0; step < 2; step++) {
            double limit = HIGH_TIMES * usual;
            // Three sums, as Weir adds them up: in another order the last bits are others.
            double first = 0.0;
            double second = 0.0;
            double third = 0.0;
            for (int slot = 0; slot < DAYS; slot += 3) {
                first += above(row, slot, limit);
                second += above(row, slot + 1, limit);
                third += above(row, slot + 2, limit);
            }
            usual = Math.max((total - (first + second + third)) / count, AMOUNT_LEAST);
        }
        return usual;
    }

    /** What a day's sum has above {@code limit} a payment. */
    private static double above(byte[] row, int slot, double limit) {
        int count = (char) U16.get(row, DAY_COUNT + 2 * slot);
        return Math.max(held(row, DAY_SUM + 4 * slot) - limit * count, 0.0);
    }

    /** Features 21 and 22: the highest of 30 days over the usual amount; days of 7 with a high one. */
    private static void high(byte[] row, long day, double usual, float[] out) {
        double limit = HIGH_TIMES * usual;
        double highest = 0.0;
        int highDays = 0;
        int slot = (int) (day % DAYS);
        for (int back = 0; back < DAYS; back++) {
            double total = held(row, DAY_SUM + 4 * slot);
            // No payment is above its day's sum, so few days are looked into.
            if (total > highest || (back < HIGH_DAYS && total > limit)) {
                double most = highestOfDay(row, slot, total);
                highest = Math.max(highest, most);
                if (back < HIGH_DAYS && most > limit) {
                    highDays++;
                }
            }
            slot = slot > 0 ? slot - 1 : DAYS - 1;
        }
        out[21] = (float) Math.min(highest / usual, RATIO_MAX);
        out[22] = highDays;
    }

    /** What a day's count, sum and sum of squares allow for its highest payment. Source: Samuelson 1968. */
    private static double highestOfDay(byte[] row, int slot, double total) {
        long count = (char) U16.get(row, DAY_COUNT + 2 * slot);
        if (count <= 1) {
            return total;
        }
        double mean = total / count;
        double spread = held(row, DAY_SQUARE + 4 * slot) / count - mean * mean * (1.0 + count * ROUNDING);
        return mean + Math.sqrt((count - 1) * Math.max(spread, 0.0));
    }

    /** Let a payment enter those of its buckets that the row still holds. */
    static void enter(byte[] row, double x, long eventMs) {
        long hour = eventMs / HOUR_MS;
        long day = hour / HOURS;
        long newest = (int) I32.get(row, NEWEST_HOUR);
        if (eventMs > (long) I64.get(row, NEWEST_MS)) {
            I64.set(row, NEWEST_MS, eventMs);
        }
        if (hour > newest - HOURS) {
            int slot = (int) (hour % HOURS);
            int count = (char) U16.get(row, HOUR_COUNT + 2 * slot);
            if (count < COUNT_MAX) {
                U16.set(row, HOUR_COUNT + 2 * slot, (char) (count + 1));
                addAmount(row, HOUR_SUM + 4 * slot, x);
            }
        }
        if (day > newest / HOURS - DAYS) {
            int slot = (int) (day % DAYS);
            int count = (char) U16.get(row, DAY_COUNT + 2 * slot);
            if (count < COUNT_MAX) {
                U16.set(row, DAY_COUNT + 2 * slot, (char) (count + 1));
                addAmount(row, DAY_SUM + 4 * slot, x);
                int square = DAY_SQUARE + 4 * slot;
                F32.set(row, square, (float) (held(row, square) + x * x));
            }
        }
    }

    private static double held(byte[] row, int at) {
        return (float) F32.get(row, at);
    }

    /** Decimal as far as 32 bits reach: any order of the amounts gives the same sum. */
    private static void addAmount(byte[] row, int at, double x) {
        F32.set(row, at, (float) (Math.rint((held(row, at) + x) * 10_000.0) / 10_000.0));
    }
}
