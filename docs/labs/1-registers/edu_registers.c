// SPDX-License-Identifier: GPL-2.0
/* Lab 1: a driver that reads and writes the registers of edu, and looks at one again and again until edu is done. */

#include <linux/iopoll.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>

#include "edu_regs.h"

#define IDENT_IS_EDU(ident) (((ident) & 0xff) == 0xed)
#define POLL_US 20 /* between two looks at the status */
#define PATIENCE_US 1000000

struct edu {
	void __iomem *regs;
	struct mutex lock; /* edu computes one factorial at a time */
	u32 result;
};

/* Whether edu answers: its liveness register gives the inverse of what was written. */
static bool edu_is_alive(struct edu *self)
{
	/* TODO 1: write a number into EDU_LIVENESS, and compare what you read with its inverse. */
	return false;
}

/* The factorial of `number`, modulo 2^32. Returns -ETIMEDOUT if edu does not come to an end. */
static int edu_factorial(struct edu *self, u32 number, u32 *result)
{
	/*
	 * TODO 2: write the number into EDU_FACTORIAL. Wait until EDU_STATUS_COMPUTING is no longer set in
	 * EDU_STATUS: no longer than PATIENCE_US. Then read the result from EDU_FACTORIAL.
	 */
	return -EOPNOTSUPP;
}

/* The files of the device in sysfs. They go before the driver's remove() is called, when none of them is in use. */

static ssize_t version_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *self = dev_get_drvdata(dev);
	u32 ident = readl(self->regs + EDU_IDENT);

	return sysfs_emit(text, "%u.%u\n", ident >> 24, (ident >> 16) & 0xff);
}
static DEVICE_ATTR_RO(version);

static ssize_t alive_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *self = dev_get_drvdata(dev);
	bool alive;

	mutex_lock(&self->lock);
	alive = edu_is_alive(self);
	mutex_unlock(&self->lock);
	return sysfs_emit(text, "%d\n", alive);
}
static DEVICE_ATTR_RO(alive);

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

static struct attribute *edu_attrs[] = {
	&dev_attr_version.attr,
	&dev_attr_alive.attr,
	&dev_attr_factorial.attr,
	NULL,
};
ATTRIBUTE_GROUPS(edu);

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct edu *self;
	u32 ident;
	int err;

	self = devm_kzalloc(dev, sizeof(*self), GFP_KERNEL);
	if (!self)
		return -ENOMEM;
	mutex_init(&self->lock);
	pci_set_drvdata(pdev, self);

	/* What pcim_ and devm_ functions have set up ends by itself: when probe() fails, and after remove(). */
	err = pcim_enable_device(pdev);
	if (err)
		return dev_err_probe(dev, err, "cannot turn it on\n");
	self->regs = pcim_iomap(pdev, EDU_MMIO_BAR, EDU_MMIO_BAR_SIZE);
	if (!self->regs)
		return dev_err_probe(dev, -ENOMEM, "cannot map BAR %u\n", EDU_MMIO_BAR);

	ident = readl(self->regs + EDU_IDENT);
	if (!IDENT_IS_EDU(ident))
		return dev_err_probe(dev, -ENODEV, "this is no edu: it says %#x\n", ident);
	return 0;
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(EDU_VENDOR_ID, EDU_DEVICE_ID) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = "edu_registers",
	.id_table = edu_ids,
	.probe = edu_probe,
	.dev_groups = edu_groups,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("Lab 1: registers");
MODULE_LICENSE("GPL");
