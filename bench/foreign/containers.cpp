/*
 * C++ `plf::hive`, or `plf::colony` that came before it, asked line by line; the same as the program in Rust beside this.
 *
 * Called with <slots> <percent> <seed>: fills the slots, then removes records at random until so many percent are live.
 * A line is "<operation> <repeats>", the answer "<ns> <checksum>": of one turn more, for the first is not timed.  It ends
 * with its input.
 */
#include <chrono>
#include <cstdint>
#include <iostream>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#ifdef COLONY
#include <plf_colony.h>
template <typename T> using Container = plf::colony<T>;
#else
#include <plf_hive.h>
template <typename T> using Container = plf::hive<T>;
#endif

/* 64 bytes, of which one field is written. */
struct Record {
	std::int64_t x;
	unsigned char pad[56];
	explicit Record(std::int64_t value) : x(value) {}
};

using Clock = std::chrono::steady_clock;
using Key = Container<Record>::iterator;

/* The numbers from 0 in random order; the same generator stands in every language here. */
static std::vector<std::size_t> shuffled(std::size_t n, std::uint64_t &state)
{
	std::vector<std::size_t> order(n);
	std::iota(order.begin(), order.end(), std::size_t{0});
	for (std::size_t i = n; i-- > 1;) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		std::swap(order[i], order[(state >> 33) % (i + 1)]);
	}
	return order;
}

static std::uint64_t sum_of(const Container<Record> &container)
{
	std::uint64_t sum = 0;
	for (const Record &record : container)
		sum += std::uint64_t(record.x);
	return sum;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 1;
	const std::size_t slots = std::stoul(argv[1]), live = slots * std::stoul(argv[2]) / 100;
	std::uint64_t seed = std::stoull(argv[3]);
	Container<Record> container;
	container.reserve(slots);
	std::vector<Key> all, keys;
	for (std::size_t i = 0; i < slots; i++)
		all.push_back(container.emplace(std::int64_t(i)));
	const auto order = shuffled(slots, seed);
	for (std::size_t i = live; i < slots; i++)
		container.erase(all[order[i]]);
	for (std::size_t i = 0; i < live; i++)
		keys.push_back(all[order[i]]);
	auto picks = shuffled(live, seed);
	picks.resize(live / 2);
	std::int64_t next = std::int64_t(slots);

	std::string operation;
	std::size_t repeats;
	while (std::cin >> operation >> repeats) {
		Clock::duration taken{};
		std::uint64_t sum = 0;
		for (std::size_t turn = 0; turn <= repeats; turn++) {
			const auto start = Clock::now();
			if (operation == "get") {
				for (const Key &key : keys)
					sum += std::uint64_t(key->x);
				taken += Clock::now() - start;
			} else if (operation == "iterate") {
				sum += sum_of(container);
				taken += Clock::now() - start;
			} else {
				for (const auto j : picks) {
					sum += std::uint64_t(keys[j]->x);
					container.erase(keys[j]);
				}
				const auto between = Clock::now();
				for (const auto j : picks)
					keys[j] = container.emplace(next++);
				taken += operation == "remove" ? between - start : Clock::now() - between;
			}
			if (turn == 0)
				taken = Clock::duration::zero();
		}
		std::cout << std::chrono::duration_cast<std::chrono::nanoseconds>(taken).count() << ' '
			  << std::int64_t(sum + sum_of(container)) << std::endl;
	}
}
