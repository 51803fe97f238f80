// SPDX-License-Identifier: GPL-2.0
/*
 * Drivers for edu and bell that use them without a pause, and check all that they say. Module parameters count the
 * rounds and the faults; each fault is told in the kernel's log as well.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/wait.h>

#define PATIENCE (30 * HZ) /* less than any driver has; no interrupt may be lost */
#define FAULT(text, ...) (faults++, pr_err("chaos: fault: " text "\n", ##__VA_ARGS__))

static int edu_rounds, bell_rounds, faults;
static long longest_read; /* in microseconds */

module_param(edu_rounds, int, 0444);
module_param(bell_rounds, int, 0444);
module_param(faults, int, 0444);
module_param(longest_read, long, 0644);

enum { LIVENESS = 0x04, FACTORIAL = 0x08, STATUS = 0x20, IRQ_STATUS = 0x24, ACKNOWLEDGE = 0x64 };
enum { SOURCE = 0x80, DESTINATION = 0x88, COUNT = 0x90, COMMAND = 0x98 };
enum { COMPUTING = 0x01, IRQ_WHEN_DONE = 0x80, FACTORIAL_DONE = 0x001, DMA_DONE = 0x100 };
enum { START = 1, TO_GUEST = 2, INTERRUPT = 4, BUFFER = 0x40000, BYTES = 4096 };

enum { IRQ_NOW = 0x08, RESET_COUNTERS = 0x0C, PLAIN = 0x10, WILDCARD_COUNT = 0x40, VALUE_COUNT = 0x50 };
enum { ACKED_COUNT = 0x60, PLAIN_COUNT = 0x68, VALUE_ERRORS = 0x80, ACKED_ERRORS = 0x88, PLAIN_ERRORS = 0x90 };
enum { LATEST_VALUE = 0xDC, LATEST_ERRORS = 0xE8 };
enum { WILDCARD = 0x000, VALUE = 0x020, LATEST = 0x040, REGION = 0x100, VECTORS = 8, TOGETHER = 8 };

struct card;

struct vector {
	struct card *card;
};

struct card {
	void __iomem *regs, *bells;
	struct task_struct *thread;
	wait_queue_head_t wait;
	unsigned long raised; /* bits of edu's interrupts, or vectors of bell's */
	u8 *memory; /* two pages for edu */
	dma_addr_t address;
	struct vector vectors[VECTORS];
};

static u32 timed_read(void __iomem *where)
{
	ktime_t begun = ktime_get();
	u32 value = readl(where);
	long took = ktime_us_delta(ktime_get(), begun);

	if (took > longest_read)
		longest_read = took;
	return value;
}

static bool comes(struct card *self, unsigned int bit, const char *what)
{
	if (wait_event_timeout(self->wait, test_and_clear_bit(bit, &self->raised), PATIENCE))
		return true;
	FAULT("no interrupt after %s", what);
	return false;
}

/* An interrupt may come once more after a hand-over. So the registers tell whether the device is done. */
static bool done(void __iomem *where, u32 busy, const char *what)
{
	unsigned long end = jiffies + PATIENCE;

	while (timed_read(where) & busy) {
		if (time_after(jiffies, end)) {
			FAULT("%s does not end", what);
			return false;
		}
		usleep_range(100, 1000);
	}
	return true;
}

static bool transfer(struct card *self, u64 from, u64 to, u64 command)
{
	writeq(from, self->regs + SOURCE);
	writeq(to, self->regs + DESTINATION);
	writeq(BYTES, self->regs + COUNT);
	writeq(command | START | INTERRUPT, self->regs + COMMAND);
	return comes(self, 8, "a transfer") && done(self->regs + COMMAND, START, "a transfer");
}

static int use_edu(void *data)
{
	struct card *self = data;
	u32 product, n, at;

	while (!kthread_should_stop()) {
		u32 round = edu_rounds + 1;

		writel(round, self->regs + LIVENESS);
		if (timed_read(self->regs + LIVENESS) != ~round)
			FAULT("edu: liveness is not %#x", ~round);

		for (n = 1 + round % 30, product = 1, at = 2; at <= n; at++)
			product *= at;
		writel(IRQ_WHEN_DONE, self->regs + STATUS);
		writel(n, self->regs + FACTORIAL);
		if (comes(self, 0, "a factorial") && done(self->regs + STATUS, COMPUTING, "a factorial"))
			if ((at = timed_read(self->regs + FACTORIAL)) != product)
				FAULT("edu: %u! is not %#x", n, at);

		for (at = 0; at < BYTES; at++)
			self->memory[at] = round + at * 7;
		memset(self->memory + BYTES, 0, BYTES);
		if (transfer(self, self->address, BUFFER, 0) && transfer(self, BUFFER, self->address + BYTES, TO_GUEST))
			if (memcmp(self->memory, self->memory + BYTES, BYTES))
				FAULT("edu: round %u: bytes have changed on their way", round);
		edu_rounds = round;
	}
	return 0;
}

static void expect(struct card *self, int where, u32 value, const char *what)
{
	u32 is = timed_read(self->regs + where);

	if (is != value)
		FAULT("bell: %s is %u, not %u", what, is, value);
}

static int use_bell(void *data)
{
	struct card *self = data;
	u32 round = 0;
	int at;

	writel(1, self->regs + RESET_COUNTERS);
	while (!kthread_should_stop()) {
		for (at = 0; at < TOGETHER; at++) {
			round++;
			writel(round, self->bells + VALUE);
			writel(round, self->regs + PLAIN);
			writel(round, self->bells + LATEST);
			writel(round, self->bells + REGION);
			writel(round, self->bells + WILDCARD);
		}
		expect(self, VALUE_COUNT, round, "the count of values");
		expect(self, VALUE_ERRORS, 0, "wrong values");
		expect(self, PLAIN_COUNT, round, "the count of writes");
		expect(self, PLAIN_ERRORS, 0, "wrong writes");
		expect(self, LATEST_VALUE, round, "the latest value");
		expect(self, LATEST_ERRORS, 0, "wrong latest values");
		expect(self, ACKED_COUNT, round, "the count of commands");
		expect(self, ACKED_ERRORS, 0, "wrong commands");
		if ((at = timed_read(self->regs + WILDCARD_COUNT)) < round) /* a ring may be seen twice: it means "look" */
			FAULT("bell: %d of %u rings", at, round);
		if ((at = timed_read(self->bells + REGION)) != round)
			FAULT("bell: %d was stored, not %u", at, round);
		at = round / TOGETHER % VECTORS;
		clear_bit(at, &self->raised);
		writel(at, self->regs + IRQ_NOW);
		comes(self, at, "a request for one");
		bell_rounds = round;
		cond_resched();
	}
	return 0;
}

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct card *self = data;
	u32 raised = timed_read(self->regs + IRQ_STATUS);

	writel(raised, self->regs + ACKNOWLEDGE);
	if (raised & FACTORIAL_DONE)
		set_bit(0, &self->raised);
	if (raised & DMA_DONE)
		set_bit(8, &self->raised);
	wake_up(&self->wait);
	return IRQ_HANDLED;
}

static irqreturn_t bell_interrupt(int irq, void *data)
{
	struct vector *vector = data;

	set_bit(vector - vector->card->vectors, &vector->card->raised);
	wake_up(&vector->card->wait);
	return IRQ_HANDLED;
}

static int set_up(struct pci_dev *pdev, int vectors)
{
	struct device *dev = &pdev->dev;
	struct card *self = devm_kzalloc(dev, sizeof(*self), GFP_KERNEL);
	int err, at;

	if (!self)
		return -ENOMEM;
	init_waitqueue_head(&self->wait);
	pci_set_drvdata(pdev, self);
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	self->regs = pcim_iomap(pdev, 0, 0);
	self->bells = vectors > 1 ? pcim_iomap(pdev, 1, 0) : self->regs;
	err = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(28));
	if (err)
		return err;
	self->memory = dmam_alloc_coherent(dev, 2 * BYTES, &self->address, GFP_KERNEL);
	if (!self->regs || !self->bells || !self->memory)
		return -ENOMEM;
	pci_set_master(pdev);
	err = pci_alloc_irq_vectors(pdev, vectors, vectors, PCI_IRQ_MSI | PCI_IRQ_MSIX);
	for (at = 0; err >= 0 && at < vectors; at++) {
		self->vectors[at].card = self;
		err = devm_request_irq(dev, pci_irq_vector(pdev, at), vectors > 1 ? bell_interrupt : edu_interrupt, 0,
				       "chaos", vectors > 1 ? (void *)&self->vectors[at] : self);
	}
	if (err < 0)
		return err;
	self->thread = kthread_run(vectors > 1 ? use_bell : use_edu, self, "chaos");
	return PTR_ERR_OR_ZERO(self->thread);
}

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int err = set_up(pdev, id->driver_data);

	return err ? dev_err_probe(&pdev->dev, err, "cannot be used\n") : 0;
}

static void remove(struct pci_dev *pdev)
{
	struct card *self = pci_get_drvdata(pdev);

	kthread_stop(self->thread);
	pci_clear_master(pdev);
}

static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(0x1234, 0x11E8), .driver_data = 1 },
	{ PCI_DEVICE(0x1234, 0xBE11), .driver_data = VECTORS },
	{ }
};
MODULE_DEVICE_TABLE(pci, ids);

static struct pci_driver chaos_driver = { .name = "chaos", .id_table = ids, .probe = probe, .remove = remove };
module_pci_driver(chaos_driver);
MODULE_DESCRIPTION("Uses edu and bell without a pause");
MODULE_LICENSE("GPL");
