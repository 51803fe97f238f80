// SPDX-License-Identifier: GPL-2.0
/* Lab 2: a driver that sleeps while edu computes a factorial. Edu wakes it up by an interrupt. */

#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>

#include "edu_regs.h"

#define IRQ_FACTORIAL 0x001 /* a bit of EDU_IRQ_STATUS: a factorial is ready */
#define PATIENCE msecs_to_jiffies(2000)

struct edu {
	void __iomem *regs;
	struct mutex lock; /* edu computes one factorial at a time */
	struct completion done;
	u32 result;
};

/* The kernel calls this on every interrupt of the device. It must not sleep. */
static irqreturn_t edu_interrupt(int irq, void *data)
{
	/*
	 * TODO 1: read EDU_IRQ_STATUS. If no bit is set, the interrupt came from another device: IRQ_NONE. Otherwise
	 * acknowledge the bits: write them into EDU_IRQ_ACKNOWLEDGE. If IRQ_FACTORIAL is among them, complete
	 * self->done, which wakes up the thread that waits. Then it is IRQ_HANDLED.
	 */
	return IRQ_NONE;
}

/* The factorial of `number`, modulo 2^32. Returns -ETIMEDOUT if no interrupt comes. */
static int edu_factorial(struct edu *self, u32 number, u32 *result)
{
	/*
	 * TODO 2: make self->done incomplete again. Write EDU_STATUS_IRQ_WHEN_DONE into EDU_STATUS, then the number
	 * into EDU_FACTORIAL. Wait for self->done, no longer than PATIENCE, and read the result.
	 */
	return -EOPNOTSUPP;
}

/* Forget interrupts that edu has raised for another driver, or for this one before it was loaded again. */
static void edu_quiet(struct edu *self)
{
	writel(0, self->regs + EDU_STATUS);
	writel(readl(self->regs + EDU_IRQ_STATUS), self->regs + EDU_IRQ_ACKNOWLEDGE);
}

static ssize_t factorial_store(struct device *dev, struct device_attribute *attr, const char *text, size_t count)
{
	struct edu *self = dev_get_drvdata(dev);
	u32 number;
	int err = kstrtou32(text, 0, &number);

	if (err)
		return err;
	mutex_lock(&self->lock);
	err = edu_factorial(self, number, &self->result);
	mutex_unlock(&self->lock);
	return err ?: count;
}

static ssize_t factorial_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *self = dev_get_drvdata(dev);

	return sysfs_emit(text, "%u\n", READ_ONCE(self->result));
}
static DEVICE_ATTR_RW(factorial);

/* What edu has raised, and nobody has acknowledged. */
static ssize_t pending_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *self = dev_get_drvdata(dev);

	return sysfs_emit(text, "%#x\n", readl(self->regs + EDU_IRQ_STATUS));
}
static DEVICE_ATTR_RO(pending);

static struct attribute *edu_attrs[] = {
	&dev_attr_factorial.attr,
	&dev_attr_pending.attr,
	NULL,
};
ATTRIBUTE_GROUPS(edu);

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct edu *self;
	int err;

	self = devm_kzalloc(dev, sizeof(*self), GFP_KERNEL);
	if (!self)
		return -ENOMEM;
	mutex_init(&self->lock);
	init_completion(&self->done);
	pci_set_drvdata(pdev, self);

	err = pcim_enable_device(pdev);
	if (err)
		return dev_err_probe(dev, err, "cannot turn it on\n");
	self->regs = pcim_iomap(pdev, EDU_MMIO_BAR, EDU_MMIO_BAR_SIZE);
	if (!self->regs)
		return dev_err_probe(dev, -ENOMEM, "cannot map BAR %u\n", EDU_MMIO_BAR);
	edu_quiet(self);
	pci_set_master(pdev); /* an MSI is a write to memory */

	/* MSI where it can be had, else the pin INTA, which the device may share with others. */
	err = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSI | PCI_IRQ_INTX);
	if (err < 0)
		return dev_err_probe(dev, err, "no interrupt\n");
	err = request_irq(pci_irq_vector(pdev, 0), edu_interrupt, IRQF_SHARED, "edu_interrupts", self);
	if (err) {
		pci_free_irq_vectors(pdev);
		return dev_err_probe(dev, err, "cannot handle the interrupt\n");
	}
	return 0;
}

static void edu_remove(struct pci_dev *pdev)
{
	struct edu *self = pci_get_drvdata(pdev);

	edu_quiet(self); /* first the device, then the handler: no interrupt is left without one */
	free_irq(pci_irq_vector(pdev, 0), self);
	pci_free_irq_vectors(pdev);
	pci_clear_master(pdev);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(EDU_VENDOR_ID, EDU_DEVICE_ID) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = "edu_interrupts",
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	.dev_groups = edu_groups,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("Lab 2: interrupts");
MODULE_LICENSE("GPL");
